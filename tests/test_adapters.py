"""Adapters beside a frozen network: silent at first, trained apart, equal to their merged form."""

import pytest
import torch

from causvid.adapters import AdapterConfig, Adapters
from causvid.checkpoints import load_dit
from causvid.export import save_original
from causvid.lora import LoraSet, read_lora, save_lora
from tiny_models import random_dit


@pytest.fixture
def batch(rng):
    return (
        torch.randn(1, 2, 4, 4, 6, generator=rng),
        torch.rand(1, 2, generator=rng),
        torch.randn(1, 5, 8, generator=rng),
    )


@pytest.fixture
def adapters(dit, rng):
    configs = {"student": AdapterConfig(rank=4, alpha=8.0), "critic": AdapterConfig(rank=2, targets=("self_attn",))}
    return Adapters(dit, configs, rng)


def train(dit, adapters, name, batch, steps=3):
    optimiser = torch.optim.Adam(adapters.parameters(name), lr=0.02)
    for _ in range(steps):
        with adapters.active(name):
            loss = (dit(*batch) - 1).square().mean()
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
    return loss.item()


def test_they_start_as_no_change_and_train_apart(dit, adapters, batch):
    base = {name: p.detach().clone() for name, p in random_dit().named_parameters()}
    teacher = dit(*batch)
    assert torch.equal(teacher, random_dit()(*batch))
    for name in ("student", "critic", None):
        with adapters.active(name):
            assert torch.equal(dit(*batch), teacher)

    critic_before = [p.detach().clone() for p in adapters.parameters("critic")]
    first = train(dit, adapters, "student", batch, steps=1)
    assert train(dit, adapters, "student", batch) < first
    assert all(torch.equal(a, b) for a, b in zip(critic_before, adapters.parameters("critic")))
    assert all(p.grad is None for p in adapters.parameters("critic"))
    train(dit, adapters, "critic", batch)

    now = dict(dit.named_parameters())
    assert all(torch.equal(now[name], p) and not now[name].requires_grad for name, p in base.items())
    outputs = [dit(*batch).detach()]
    for name in ("student", "critic"):
        with adapters.active(name):
            outputs.append(dit(*batch).detach())
    assert torch.equal(outputs[0], teacher)
    assert all((a - b).abs().max() > 1e-3 for a, b in ((0, 1), (0, 2), (1, 2)) for a, b in [(outputs[a], outputs[b])])


def test_contexts_nest_and_recover_from_errors(dit, adapters, batch):
    train(dit, adapters, "student", batch)
    with adapters.active("student"):
        student = dit(*batch).detach()
        with torch.no_grad(), adapters.active(None):
            assert torch.equal(dit(*batch), random_dit()(*batch))
        assert torch.equal(dit(*batch).detach(), student)
    with pytest.raises(ValueError, match="no adapter 'sudent'"), adapters.active("sudent"):
        pass
    with pytest.raises(KeyError), adapters.active("student"):
        raise KeyError
    assert torch.equal(dit(*batch), random_dit()(*batch))


def test_an_adapter_equals_its_merged_form_through_a_file(dit, adapters, batch, tmp_path):
    train(dit, adapters, "student", batch)
    save_lora(adapters.lora("student"), tmp_path / "l.safetensors")
    merged = random_dit()
    LoraSet(merged).add("student", read_lora(tmp_path / "l.safetensors"))
    with adapters.active("student"):
        assert torch.allclose(dit(*batch), merged(*batch), atol=1e-4)
        assert not torch.allclose(dit(*batch), random_dit()(*batch), atol=1e-2)


def test_gradients_with_recomputed_blocks(dit, adapters, batch):
    def gradients():
        for p in adapters.parameters("student"):
            p.grad = None
        with adapters.active("student"):
            dit(*batch).square().sum().backward()
        return [p.grad.clone() for p in adapters.parameters("student")]

    train(dit, adapters, "student", batch)
    plain = gradients()
    dit.checkpoint_blocks = True
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients()))
    with adapters.active("student"):
        loss = dit(*batch).square().sum()
    with pytest.raises(RuntimeError, match="same `with"), adapters.active("critic"):
        loss.backward()


def test_what_is_adapted(dit, adapters, tmp_path):
    assert {name.split(".")[2] for name in adapters.lora("student").names()} == {"self_attn", "cross_attn", "ffn"}
    assert len(adapters.lora("student").names()) == 3 * 10
    assert len(adapters.lora("critic").names()) == 3 * 4
    trained = sum(p.numel() for p in dit.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for name in ("student", "critic") for p in adapters.parameters(name))
    with pytest.raises(ValueError, match="merge adapters first"):
        save_original(dit, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
    names = random_dit().state_dict().keys()
    save_original(dit, tmp_path / "m.safetensors", state={n: dit.state_dict()[n] for n in names})
    assert load_dit(tmp_path / "m.safetensors").cfg == dit.cfg
