"""Prompts from outside, and umT5: zero rows past the prompt, the original names, the store that spares a load."""

import pytest
import torch

from causvid.errors import UserError
from causvid.stages.sources import Words, encode_ahead
from causvid.text import MAX_PROMPT_CHARACTERS, TextEncoder, Understood, clean_prompt
from causvid.training import parallel

transformers = pytest.importorskip("transformers")
pytest.importorskip("ftfy")
tokenizers = pytest.importorskip("tokenizers")

from causvid.text.umt5 import (  # noqa: E402  (needs the optional packages above)
    UMT5_XXL_BYTES,
    UMT5_XXL_CONFIG,
    WAN_NEGATIVE_PROMPT,
    EmbeddingStore,
    Umt5Text,
    clean_for_wan,
    fingerprint,
)

WORDS = ["a", "red", "ball", "rolls", "over", "the", "green", "hill", "while", "two", "birds", "sing"]
SMALL = UMT5_XXL_CONFIG | {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 3}
LENGTH = 24


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model folder in diffusers' layout with a tiny random encoder and a word-level tokeniser that ends in </s>."""
    folder = tmp_path_factory.mktemp("umt5")
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = transformers.UMT5EncoderModel(transformers.UMT5Config(**SMALL))
        for parameter in encoder.parameters():  # the usual small start would leave the layers nearly linear
            parameter.data = torch.randn(parameter.shape) * 0.4
    encoder.save_pretrained(folder / "text_encoder")
    return folder


def small_text(folder, store=None, dtype=torch.float32):
    return Umt5Text.from_folder(folder, dtype=dtype, length=LENGTH, store=store)


def padded_run(folder, prompt):
    """The textbook way: tokens padded to the full length, mask into the encoder, rows past the prompt set to zero."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    encoder = small_text(folder).load_encoder()
    tokens = tokenizer([prompt], padding="max_length", max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        rows = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return rows * tokens.attention_mask[..., None], int(tokens.attention_mask.sum())


def test_rows_equal_the_padded_run_and_are_zero_past_the_prompt(model_folder):
    text = small_text(model_folder)
    prompts = ["a red ball", "two birds sing over the hill while a ball rolls"]
    rows = text(prompts)
    assert isinstance(text, TextEncoder) and text.understand("a glockenspiel") == Understood("a glockenspiel")
    assert rows.shape == (2, LENGTH, text.width) == (2, LENGTH, 16)
    for block, prompt in zip(rows, prompts, strict=True):
        expected, num_tokens = padded_run(model_folder, prompt)
        assert num_tokens == len(prompt.split()) + 1
        torch.testing.assert_close(block, expected[0], rtol=0, atol=1e-5)
        assert torch.count_nonzero(block[num_tokens:]) == 0
        assert block[:num_tokens].abs().amin(dim=1).max() > 0


def test_other_prompts_in_the_batch_change_nothing(model_folder):
    text = small_text(model_folder)
    alone = text(["the hill"])
    together = text(["two birds sing over the green hill", "the hill", "a"])
    assert torch.equal(together[1:2], alone)
    assert not torch.allclose(together[:1], alone)


def test_long_prompts_are_cut_and_said_to_be(model_folder):
    text = small_text(model_folder)
    long = " ".join(WORDS * 3)
    with pytest.warns(UserWarning, match="37 tokens, only the first 24"):
        rows = text([long])
    assert torch.count_nonzero(rows[0].abs().amax(dim=1)) == LENGTH


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_store_spares_the_encoder(model_folder, tmp_path, dtype):
    writer = small_text(model_folder, EmbeddingStore(tmp_path / "store"), dtype)
    first = writer(["a red ball", "two birds"])
    assert writer.encoder is not None
    writer.unload()
    assert writer.encoder is None

    reader = small_text(model_folder, EmbeddingStore(tmp_path / "store"), dtype)
    reader.load_encoder = lambda: pytest.fail("a stored prompt must not load the encoder")
    assert torch.equal(reader(["  two   birds ", "a red ball"]), first.flip(0))  # keyed by the cleaned prompt
    assert reader.encoder is None
    assert reader.tokenizer is None
    assert first.dtype == dtype

    files = list((tmp_path / "store").iterdir())
    assert len(files) == 2  # nothing half-written stays behind
    assert all(file.stat().st_size < 1000 for file in files)  # only the true rows: 24 x 16 float32 would be 1536 bytes


def test_what_is_read_ahead_needs_no_encoder_later(model_folder, tmp_path):
    text = small_text(model_folder, EmbeddingStore(tmp_path / "store"))
    text(["two birds"])
    told = []
    text.encode_ahead(["a red ball", "two  birds", "a red ball", "the hill"], told.append)
    assert told == ["the text encoder reads 2 new prompts on each process"]
    assert text.encoder is None
    text.load_encoder = lambda: pytest.fail("these prompts were read ahead")
    assert torch.equal(text(["a red ball", "the hill"]), small_text(model_folder)(["a red ball", "the hill"]))
    text.encode_ahead(["the hill"], told.append)
    assert len(told) == 1


def test_every_rank_reads_its_share_of_a_runs_prompts(model_folder, tmp_path, monkeypatch):
    prompts, told = ["a red ball", "two birds", "the hill"], []
    monkeypatch.setattr(parallel, "num_ranks", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        words = Words(small_text(model_folder, EmbeddingStore(tmp_path / "store")), "a ball", torch.device("cpu"))
        encode_ahead(words, iter(prompts), told.append)
        assert words.encoder.encoder is None
    assert [line.split()[4] for line in told] == ["3", "1"]  # the negative prompt with the first share
    words.encoder.load_encoder = lambda: pytest.fail("all were read ahead")
    assert len(words(prompts)) == len(words.none(3)) == 3


def test_the_store_tells_encoders_apart(model_folder, tmp_path):
    store = EmbeddingStore(tmp_path)
    small_text(model_folder, store)(["a red ball"])
    other = small_text(model_folder, store, torch.bfloat16)
    assert store.get(other.identity, "a red ball") is None
    assert store.get(small_text(model_folder).identity, "a red ball") is not None

    one, two = tmp_path / "one", tmp_path / "two"
    content = bytes(range(256)) * 4096
    one.write_bytes(content)
    two.write_bytes(content)
    assert fingerprint([one]) == fingerprint([two])
    two.write_bytes(content[:-1] + b"\0")
    assert fingerprint([one]) != fingerprint([two])


def test_a_damaged_stored_file_is_named(model_folder, tmp_path):
    text = small_text(model_folder, EmbeddingStore(tmp_path))
    text(["a red ball"])
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"half a file")
    with pytest.raises(UserError, match=f"{file.name} is damaged; delete it"):
        text(["a red ball"])


def test_the_original_file_gives_the_same_rows(model_folder, tmp_path):
    """The Wan project's names, written out from diffusers' by hand."""
    reference = small_text(model_folder)
    state = reference.load_encoder().state_dict()
    original = {
        "token_embedding.weight": state["shared.weight"],
        "norm.weight": state["encoder.final_layer_norm.weight"],
    }
    for layer in range(SMALL["num_layers"]):
        attention, ffn = f"encoder.block.{layer}.layer.0", f"encoder.block.{layer}.layer.1"
        pairs = {
            "norm1": f"{attention}.layer_norm",
            "pos_embedding.embedding": f"{attention}.SelfAttention.relative_attention_bias",
            "norm2": f"{ffn}.layer_norm",
            "ffn.gate.0": f"{ffn}.DenseReluDense.wi_0",
            "ffn.fc1": f"{ffn}.DenseReluDense.wi_1",
            "ffn.fc2": f"{ffn}.DenseReluDense.wo",
        } | {f"attn.{part}": f"{attention}.SelfAttention.{part}" for part in "qkvo"}
        original |= {f"blocks.{layer}.{ours}.weight": state[f"{theirs}.weight"] for ours, theirs in pairs.items()}
    file = tmp_path / "models_t5.pth"
    torch.save({name: tensor.clone() for name, tensor in original.items()}, file)

    text = Umt5Text.from_original(file, model_folder / "tokenizer", config=SMALL, dtype=torch.float32, length=LENGTH)
    assert torch.equal(text(["two birds sing"]), reference(["two birds sing"]))

    original["blocks.1.extra.weight"] = original.pop("blocks.1.attn.o.weight")
    torch.save(original, file)
    with pytest.raises(UserError, match=r"1 missing \(.*SelfAttention.o.weight\); 1 unknown \(blocks.1.extra.weight\)"):
        text.load_encoder()


def test_the_real_encoder_has_the_published_size():
    """11,361,920,418 bytes of bfloat16, less the file's own overhead of names and zip records."""
    with torch.device("meta"):
        encoder = transformers.UMT5EncoderModel(transformers.UMT5Config(**UMT5_XXL_CONFIG))
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    assert 0 < 11_361_920_418 - UMT5_XXL_BYTES < 200_000 and 2 * num_parameters == UMT5_XXL_BYTES


def test_missing_files_are_told_before_anything_loads(model_folder, tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        Umt5Text.from_folder(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Umt5Text.from_original(tmp_path / "absent.pth", model_folder / "tokenizer")
    (tmp_path / "weights.pth").touch()
    with pytest.raises(UserError, match="no tokeniser"):
        Umt5Text.from_original(tmp_path / "weights.pth", tmp_path)


def test_without_the_extra_the_remedy_is_named(monkeypatch, model_folder):
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    with pytest.raises(UserError, match=r"pip install 'causvid\[wan\]'"):
        small_text(model_folder)(["a red ball"])


def test_wan_cleaning():
    assert clean_for_wan("  a\n\t red   ball ") == "a red ball"
    assert clean_for_wan("birds &amp;amp; hills") == "birds & hills"
    assert clean_for_wan("the cafÃ©") == "the café"  # UTF-8 read as Latin-1, which ftfy mends
    assert clean_for_wan("") == ""


def test_the_negative_prompt_is_one_line_of_the_known_length():
    assert len(WAN_NEGATIVE_PROMPT.split("，")) == 28
    assert WAN_NEGATIVE_PROMPT.startswith("色调艳丽，过曝，静态，")
    assert WAN_NEGATIVE_PROMPT.endswith("背景人很多，倒着走")
    assert WAN_NEGATIVE_PROMPT == "".join(WAN_NEGATIVE_PROMPT.split())


def test_prompts_from_outside_pass_when_proper():
    assert clean_prompt("  a red ball\n") == "a red ball"
    assert clean_prompt("a ball\n\tand a café 🎈👨‍👩‍👧") == "a ball\n\tand a café 🎈👨‍👩‍👧"
    assert clean_prompt("\ufeffein Ball".encode()) == "ein Ball"
    assert clean_prompt("", allow_empty=True) == ""
    assert clean_prompt("x" * MAX_PROMPT_CHARACTERS) == "x" * MAX_PROMPT_CHARACTERS


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        (b"caf\xe9", "not UTF-8 text .byte 3."),
        ("caf\udce9", "not UTF-8 text .character 3."),
        ("a \x00 ball", "U\\+0000"),
        ("a \x1b[31m ball", "U\\+001B"),
        ("a ball \x9f of", "U\\+009F"),
        ("x" * 100_000, "100,000 characters; shorten it to at most 8,000"),
    ],
)
def test_improper_prompts_are_refused_in_one_sentence(prompt, told):
    with pytest.raises(UserError, match=told) as refusal:
        clean_prompt(prompt)
    assert len(str(refusal.value)) < 160
    assert "\n" not in str(refusal.value)
