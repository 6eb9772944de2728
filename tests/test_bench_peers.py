"""Peers: released libraries beside ours, compared with our specification before they are timed."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from biases import attend, registry, zoo
from biases.bench import ceilings, peers
from biases.bench.peers import PEERS, CannotRun, Peer, peers_of
from biases.bench.run import Plan, measure
from biases.bench.workloads import Setting

SETTING = Setting(batch=2, heads=2, length=196, head_dim=16)
BOTH = ("forward", "forward+backward")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


PAIRS = [pytest.param(peer, subject, id=f"{peer.name}-{subject}") for peer in PEERS for subject in peer.subjects]


@pytest.mark.parametrize(("peer", "subject"), PAIRS)
def test_every_peer_is_of_a_layer_of_the_zoo(peer, subject):
    assert registry.get(subject).kind == "layer"
    assert peer in peers_of(peer.level, subject)
    assert zoo.trial(subject) is not None


@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize(("peer", "subject"), [pair for pair in PAIRS if pair.values[0].package != "torch"])
def test_a_peer_computes_what_ours_does(peer, subject, direction):
    if importlib.util.find_spec(peer.package) is None:
        pytest.skip(f"{peer.package} is not installed")
    if peer.package == "fla" and not torch.cuda.is_available():
        pytest.skip("its kernels need a CUDA device")
    run, check = peer.prepare(subject, replace(SETTING, direction=direction))
    check()
    assert len(run()) > (direction != "forward")


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["standard", "alibi", "alibi-symmetric", "ega", "manhattan"])
def test_flex_attention_computes_what_ours_does(subject):
    (peer,) = (each for each in peers_of("operator", subject) if each.name == "FlexAttention")
    run, check = peer.prepare(subject, SETTING)
    check()
    assert len(run()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_flex_attention_has_no_backward_on_the_cpu():
    (peer,) = (each for each in peers_of("operator", "manhattan") if each.name == "FlexAttention")
    with pytest.raises(CannotRun, match="no backward pass on the CPU"):
        peer.prepare("manhattan", replace(SETTING, direction="forward+backward"))


def test_windows_must_tile_the_map():
    (peer,) = peers_of("layer", "swin")
    ours, _ = peers.modules.build_layer("swin", replace(SETTING, length=100), "auto")
    with pytest.raises(CannotRun, match="windows of 7 do not tile a map of side 10"):
        peer.make(ours, replace(SETTING, length=100))


def test_a_missing_library_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for peer, install in ((PEERS[0], "attention-biases[peers]"), (peers_of("layer", "swin")[0], "biases[timm]")):
        with pytest.raises(CannotRun) as stopped:
            peer.prepare(peer.subjects[0], SETTING)
        assert install in str(stopped.value)
    (linear,) = peers_of("operator", "retention")
    with pytest.raises(CannotRun, match=r"attention-biases\[fla\]"):
        linear.prepare("retention", SETTING)


def _measured(monkeypatch, peer):
    monkeypatch.setattr(peers, "PEERS", (peer,))
    plan = Plan("operator", ["alibi"], [SETTING], peers=True, rounds=2, seconds=0.01)
    return measure(plan, "alibi", SETTING, ceilings(size=32, copy_bytes=4096, rounds=1))


def test_peers_are_timed_in_the_rounds_of_ours(monkeypatch):
    ours, theirs = _measured(monkeypatch, Peer("same", "torch", "operator", ("alibi",), lambda operator: attend))
    assert (ours.peer, theirs.peer) == (None, "same")
    assert ours.status == theirs.status == "ok"
    assert ours.floor.seconds == theirs.floor.seconds
    assert theirs.ratio is not None
    assert theirs.ratio.rounds == 2


def test_a_peer_that_is_wrong_or_breaks_is_not_timed(monkeypatch):
    def without_bias(operator):
        return lambda q, k, v, **options: attend(q, k, v, causal=True)

    def breaking(operator):
        raise RuntimeError("another version")

    ours, theirs = _measured(monkeypatch, Peer("wrong", "torch", "operator", ("alibi",), without_bias))
    assert (ours.status, theirs.status) == ("ok", "failed")
    assert "wrong, alibi: output" in theirs.message
    ours, theirs = _measured(monkeypatch, Peer("broken", "torch", "operator", ("alibi",), breaking))
    assert (ours.status, theirs.status, theirs.message) == ("ok", "error", "RuntimeError: another version")
    assert theirs.samples.seconds == ()
