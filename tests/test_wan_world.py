"""Folders as people download them, at a size of kilobytes: a diffusers pipeline, with a student's .pt beside it."""

import numpy as np
import pytest
import torch

from causvid import wan_world
from causvid.bundle import Place
from causvid.codecs.tiny import TinyCodec
from causvid.codecs.wan import WanCodec
from causvid.errors import UserError
from causvid.export import save_diffusers
from causvid.models.dit import VideoDiTConfig
from causvid.pixels import frames_from_video
from tiny_models import BoxCodec, HashText, random_dit

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("ftfy")

from causvid.loading import load  # noqa: E402  (after the optional packages)

WIDTH_OF_TEXT = 16
TRANSFORMER = VideoDiTConfig(
    width=128,
    ffn_width=64,
    num_heads=1,
    num_layers=2,
    in_channels=16,
    out_channels=16,
    patch=2,
    freq_width=256,
    text_width=WIDTH_OF_TEXT,
    text_length=512,
    eps=1e-6,
    precision="islands",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    save_diffusers(random_dit(TRANSFORMER), folder / "transformer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1).save_pretrained(folder / "vae")
        text = transformers.UMT5Config(vocab_size=16, d_model=WIDTH_OF_TEXT, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        transformers.UMT5EncoderModel(text).save_pretrained(folder / "text_encoder")
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "car"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    return folder


def test_a_pipeline_folder_with_a_published_student(folder, tmp_path):
    student = {f"model.{name}": tensor.clone() for name, tensor in random_dit(TRANSFORMER, seed=3).state_dict().items()}
    torch.save({"generator": student, "critic": {}}, tmp_path / "student.pt")
    options = dict(device="cpu", dtype="float32", size=(32, 48), student=tmp_path / "student.pt")
    model = load(folder, recipe="causvid-3step", **options)
    assert model.cfg.rollout.sigmas == (1.0, 0.757, 0.522, 0.0)
    session = model.session("a red car", seed=1)
    first, second = session.next_chunk(), session.next_chunk()
    assert first.frames.shape == (9, 32, 48, 3) and second.frames.shape == (12, 32, 48, 3)
    assert torch.equal(model.need_student().state_dict()["head.head.weight"], student["model.head.head.weight"])
    assert model.need_student().cfg.precision == "plain" and model.need_teacher().cfg.precision == "islands"
    clip = model.sample("a red car", seconds=0.25, steps=2, seed=1)
    assert clip.shape == (5, 32, 48, 3) and clip.dtype == np.uint8
    # the embeddings were kept: the encoder itself is not needed again
    again = load(folder, **options)
    assert torch.equal(again.embed(["a red car"]), model.embed(["a red car"]))
    assert again.text.encoder is None


def test_a_small_codec_stands_in_for_wans(folder, tmp_path):
    small = {}
    for name, sizes in {"taew2_1": {}, "taew2_2": dict(latent_channels=48, patch_size=2)}.items():
        small[name] = TinyCodec.random(**sizes)
        torch.save(small[name].network.state_dict(), tmp_path / f"{name}.pth")
    student = tmp_path / "student.pt"
    torch.save({"generator": random_dit(TRANSFORMER, seed=3).state_dict()}, student)
    options = dict(device="cpu", dtype="float32", size=(32, 48), student=student)
    model, plain = load(folder, codec=tmp_path / "taew2_1.pth", **options), load(folder, **options)
    chunk, same = model.session("a red car", seed=1).next_chunk(), plain.session("a red car", seed=1).next_chunk()
    assert torch.equal(chunk.latents, same.latents)  # only what shows them is another one
    shown = TinyCodec.from_file(tmp_path / "taew2_1.pth").decode(chunk.latents)
    assert np.array_equal(chunk.frames, frames_from_video(shown)) and not np.array_equal(chunk.frames, same.frames)
    with pytest.raises(UserError, match=r"48 channels for 16 pixels and .* 16 channels for 8 pixels; use taew2_1"):
        load(folder, codec=tmp_path / "taew2_2.pth", **options)
    with pytest.raises(UserError, match="only its own codec reads the latents of 'vista'"):
        load("vista", codec=tmp_path / "taew2_1.pth")


@pytest.mark.parametrize(("vae", "height"), [("Wan2.1_VAE.pth", 480), ("Wan2.2_VAE.pth", 704)])
def test_an_original_folder_is_known_by_its_autoencoder(tmp_path, monkeypatch, vae, height):
    codec = BoxCodec()
    codec.space_factor = 8 if height == 480 else 16
    monkeypatch.setattr(wan_world.Umt5Text, "from_original", lambda *_, **__: HashText())
    monkeypatch.setattr(WanCodec, "from_original", lambda file, **_: codec if file == tmp_path / vae else None)
    (tmp_path / wan_world.ORIGINAL_TEXT).touch()
    with pytest.raises(UserError, match=r"nor Wan2\.1_VAE\.pth or Wan2\.2_VAE\.pth \(original Wan\)"):
        load(tmp_path, device="cpu")
    (tmp_path / vae).touch()
    assert load(tmp_path, device="cpu").cfg.height == height


def test_recipes_and_sizes_that_do_not_exist(folder):
    place = Place.of("cpu", "float32")
    with pytest.raises(UserError, match="no student recipe 'x'; use one of self-forcing"):
        wan_world.load_wan(folder, place, "x")
    with pytest.raises(UserError, match="steps of 16 pixels: 100x150 could be 96x144"):
        load(folder, size=(100, 150), device="cpu")


def test_recipes_are_the_published_schedules():
    rounded = {name: [round(1000 * s, 1) for s in r.sigmas] for name, r in wan_world.STUDENT_RECIPES.items()}
    assert rounded == {
        "self-forcing": [1000, 937.5, 833.3, 625, 0],
        "causvid-4step": [1000, 960, 888.9, 727.3, 0],
        "causvid-3step": [1000, 757, 522, 0],
    }
