"""Vista's words: order matters, unknown words are told, padding is nothing."""

import pytest
import torch
from safetensors.torch import save_file

import causvid
from causvid.errors import UserError
from causvid.text import TextEncoder
from causvid.text.vista import COMMA, END, FIRST_WORD, PAD, UNKNOWN, VistaText, VistaTextConfig, split_words
from causvid.worlds import vista

WORDS = ["a", "red", "blue", "car", "bird", "hot-air", "balloon", "with", "nearby", "hops"]
CFG = VistaTextConfig(width=32, ffn_width=64, num_layers=2, num_heads=2, length=12)


@pytest.fixture
def encoder() -> VistaText:
    torch.manual_seed(0)
    return VistaText(CFG, WORDS)


def test_words_and_punctuation():
    assert split_words("A red hot-air  balloon; it's  Blue.") == ["a", "red", "hot-air", "balloon", ",", "it's", "blue"]
    assert split_words(" , ,a,, b ,") == ["a", ",", "b"]
    assert split_words("") == [] and split_words("...") == []


def test_ids_are_stable(encoder):
    row = encoder.tokenize(["a zebra, hops"])[0].tolist()
    assert row == [FIRST_WORD, UNKNOWN, COMMA, FIRST_WORD + 9, END] + [PAD] * 7
    assert encoder.unknown_words("a Zebra, hops with 3 birds") == ["zebra", "3", "birds"]
    with pytest.raises(ValueError, match="twice"):
        VistaText(CFG, ["a", "a"])


def test_it_is_a_text_encoder_and_order_matters(encoder):
    assert isinstance(encoder, TextEncoder)
    text = encoder(["a red car with a blue bird nearby", "a blue car with a red bird nearby"])
    assert text.shape == (2, 12, 32)
    # each row is compared with the row of the same word: a bag of words would make these equal
    assert (text[0, 2] - text[1, 2]).abs().max() > 1e-3
    swapped = encoder(["a red bird with a blue car nearby"])
    assert (text[0].sum(0) - swapped[0].sum(0)).abs().max() > 1e-3


def test_rows_past_the_end_are_zero_and_the_batch_does_not_matter(encoder):
    prompts = ["a red car", "", "a blue car with a red bird nearby"]
    together = encoder(prompts)
    for row, (prompt, num_rows) in enumerate(zip(prompts, [4, 1, 9])):
        assert together[row, num_rows:].abs().max() == 0
        assert together[row, :num_rows].abs().min(dim=1).values.max() > 0
        torch.testing.assert_close(together[row], encoder([prompt])[0], atol=1e-6, rtol=1e-5)


def test_a_long_prompt_loses_its_tail(encoder):
    long = " ".join(["red"] * 20)
    assert encoder.num_lost_words(long) == 9 and encoder.num_lost_words("a red car") == 0
    torch.testing.assert_close(encoder([long]), encoder([" ".join(["red"] * 11)]))


def test_saved_and_loaded(encoder, tmp_path):
    save_file(encoder.state_dict(), tmp_path / "text.safetensors", metadata=encoder.about())
    again = VistaText.load(tmp_path / "text.safetensors")
    assert again.vocabulary == tuple(WORDS) and again.cfg == CFG
    torch.testing.assert_close(again(["a blue bird hops"]), encoder(["a blue bird hops"]), rtol=0, atol=0)
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        VistaText.load(tmp_path / "broken.safetensors")
    save_file(encoder.state_dict(), tmp_path / "mute.safetensors")
    with pytest.raises(UserError, match="which words it knows"):
        VistaText.load(tmp_path / "mute.safetensors")


def test_what_it_writes_it_reads(encoder, tmp_path):
    encoder.save(tmp_path / "text.safetensors", dtype=torch.float32)
    again = VistaText.load(tmp_path / "text.safetensors")
    assert torch.equal(again(["a red car, hops"]), encoder(["a red car, hops"]))
    assert [p.name for p in tmp_path.iterdir()] == ["text.safetensors"]


def test_what_people_say_besides_is_read_in_words_of_captions():
    encoder = VistaText(CFG, [*WORDS, "boat", "city", "in"])
    understood = encoder.understand("A red ship in town, with a carr and a xylophone")
    assert understood.text == "a red boat in city, with a carr and a xylophone"
    assert understood.read_as == {"ship": "boat", "town": "city"}
    assert understood.unknown == {"carr": ("car",), "and": (), "xylophone": ()} and understood.num_lost == 1
    assert understood.notes[:3] == [
        "'ship' is read as 'boat'",
        "'town' is read as 'city'",
        "the word 'carr' is not known; near it: car",
    ]
    assert encoder.understand("a toy car").notes == ["'toy' is left out"]
    woman = encoder.understand("a woman in town")
    assert "duck" in woman.instead and woman.notes[-1].startswith("nothing is named that this model can show: car, bus")
    assert not encoder.understand("a woman beside a car").instead and not encoder.understand("in town").instead
    assert encoder.understand("toy").text == "toy", "something must be left"
    assert "🙂" in encoder.understand("🙂").notes[0] and encoder.understand("🙂").instead
    assert not encoder.understand(" ").notes
    assert encoder.understand(" ".join(["red"] * 14)).notes == ["the last 3 words do not fit; shorten the prompt"]


def test_what_comes_later_is_told_in_parts_if_the_encoder_has_the_words():
    told = "a ship at night, then dawn comes"
    understood = VistaText(CFG, vista.vocabulary()).understand(told)
    assert understood.story == ("a video of a boat at night", "a video of a boat at dawn")
    assert understood.notes == ["'ship' is read as 'boat'"]
    assert understood.streamed_notes[1:] == [
        "told one after the other: 'a video of a boat at night', then 'a video of a boat at dawn'"
    ]
    assert VistaText(CFG, [*WORDS, "boat", "at", "night", "then", "dawn", "comes"]).understand(told).story == ()


def test_words_that_are_not_known_leave_a_colour_to_be_named():
    encoder = VistaText(CFG, vista.vocabulary())
    old, plain = encoder.settle(("an old car drives",), 3, ""), encoder.settle(("an azure car drives",), 3, "")
    assert vista.parse_caption(old[0]).attributes["colour"] in old[0] and plain == ("an azure car drives",)
    small = VistaText(CFG, WORDS)
    assert small.settle(("a car with a bird",), 3, "") == ("a car with a bird",), "no word that it does not know"
    assert small.settle(("a red car " + "nearby " * 9,), 3, "") == ("a red car " + "nearby " * 9,)


def test_captions_are_read_as_they_are():
    encoder = VistaText(CFG, vista.vocabulary())
    for split in vista.SPLITS:
        for seed in range(40):
            text = vista.caption(vista.sample_scene(seed, split), seed, split)
            assert encoder.understand(text).text == text and not encoder.understand(text).unknown, text


def test_every_way_to_a_network_goes_through_it():
    """Python, the commands and the server all embed through the model."""
    model = causvid.load("vista")
    plain = model.text(["a red boat in city"])
    assert torch.equal(model.embed(["A red ship in town!"]), plain.to(model.dtype))
    session = model.session("a red ship in town")
    assert torch.equal(session.now.words.rows, plain.to(model.dtype))
    assert session.prompt == "a red ship in town" and session.understood.text == "a red boat in city"
    session.set_prompt("a red vessel")
    assert session.understood.notes == ["'vessel' is read as 'boat'"]
