"""What of a profile is attention, on events whose times are known."""

from __future__ import annotations

import re

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from biases.bench.profile import attribute

ATTEND = "biases::attend (native)"
ENGINE = "autograd::engine::evaluate_function: "


def event(name, start, end, *, node=-1, of=0, thread=1, device=DeviceType.CPU, annotation=False):
    """On ``thread``, in microseconds; ``node`` is the sequence number, ``of`` the thread that created the node."""
    made = FunctionEvent(
        id=0,
        name=name,
        thread=thread,
        start_us=start,
        end_us=end,
        fwd_thread=of,
        sequence_nr=node,
        device_type=device,
        use_device="cuda",
    )
    made.is_user_annotation = annotation
    return made


def nested(*events):
    """Every event inside the shortest of those before it, on its thread, that contain it."""
    for n, inner in enumerate(events):
        around = [
            outer
            for outer in events[:n]
            if outer.device_type == inner.device_type == DeviceType.CPU
            and outer.thread == inner.thread
            and outer.time_range.start <= inner.time_range.start
            and inner.time_range.end <= outer.time_range.end
        ]
        if around:
            parent = min(around, key=lambda outer: outer.time_range.elapsed_us())
            parent.append_cpu_child(inner)
            inner.set_cpu_parent(parent)
    return events


def attributed(end, *events, **options):
    """The attention in a step of so many microseconds."""
    return attribute(nested(event("ProfilerStep*", 0, end, annotation=True), *events), **options)


def test_forward_and_backward_of_a_call():
    """Node 5 is created by ``aten::to``; node 6 by what follows, though the last operator inside records its number."""
    found = attributed(
        100,
        event("aten::linear", 1, 10, node=4),
        event(ATTEND, 10, 30),
        event("aten::to", 12, 14, node=5),
        event("aten::view", 20, 22, node=6),
        event("aten::transpose", 30, 31, node=6),
        event(ENGINE + "TransposeBackward0", 40, 48, node=6, of=1),
        event("TransposeBackward0", 41, 47, node=6, of=1),
        event(ENGINE + "ToBackward0", 50, 65, node=5, of=1),
        event("ToBackward0", 51, 60, node=5, of=1),
        event(ENGINE + "MmBackward0", 65, 90, node=4, of=1),
    )
    assert found.operators == {ATTEND: 1}
    assert (found.forward_seconds, found.backward_seconds) == pytest.approx((20e-6, 15e-6))
    assert found.share == pytest.approx(0.35)
    assert found.device_seconds is None


def test_the_last_operator_before_the_backward():
    found = attributed(
        50,
        event("aten::scaled_dot_product_attention", 0, 10, node=7),
        event("aten::_scaled_dot_product_flash_attention_for_cpu", 1, 9, node=8),
        event(ENGINE + "AttentionBackward0", 20, 30, node=8, of=1),
        event("aten::_scaled_dot_product_flash_attention_for_cpu_backward", 21, 29),
        event(ENGINE + "ReshapeBackward0", 30, 35, node=7, of=1),
        event(ENGINE + "torch::autograd::AccumulateGrad", 35, 45),
    )
    assert found.operators == {"aten::scaled_dot_product_attention": 1}
    assert found.backward_seconds == pytest.approx(15e-6)


def test_an_engine_that_records_the_number_alone():
    """It is no forward operator, and its part is counted with the node's."""
    found = attributed(
        50,
        event(ATTEND, 0, 10),
        event("aten::mm", 2, 8, node=3),
        event(ENGINE + "MmBackward0", 20, 30, node=3),
        event("MmBackward0", 21, 25, node=3, of=1),
    )
    assert (found.forward_seconds, found.backward_seconds) == pytest.approx((10e-6, 10e-6))


def test_nodes_of_another_thread_are_others():
    found = attributed(
        100,
        event(ATTEND, 0, 10),
        event("aten::to", 1, 2, node=5),
        event("aten::mm", 1, 2, node=5, thread=2),
        event(ENGINE + "ToBackward0", 20, 30, node=5, of=1, thread=3),
        event(ENGINE + "MmBackward0", 30, 70, node=5, of=2, thread=3),
    )
    assert found.backward_seconds == pytest.approx(10e-6)


def test_attention_in_a_backward_counts_once_and_as_backward():
    """As with checkpoints, which run the forward again, and where a backward calls the stock kernel."""
    found = attributed(
        100,
        event(ATTEND, 0, 10),
        event("aten::to", 1, 2, node=1),
        event("aten::add", 10, 11, node=2),
        event(ENGINE + "CheckpointBackward", 20, 60, node=2, of=1),
        event(ATTEND, 25, 40),
        event("aten::to", 26, 27, node=9),
        event(ENGINE + "ToBackward0", 60, 70, node=1, of=1),
        event("aten::scaled_dot_product_attention", 61, 69),
    )
    assert found.operators == {ATTEND: 1}
    assert (found.forward_seconds, found.backward_seconds) == pytest.approx((10e-6, 25e-6))


def test_without_attention_and_with_nothing_else():
    assert attributed(10, event("aten::mm", 0, 10, node=1)).share == 0.0
    assert attributed(10, event(ATTEND, 0, 10)).share == pytest.approx(1.0)
    nothing = attribute([])
    assert nothing.share is None
    assert nothing.reason == "no time was recorded"


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("aten::scaled_dot_product_attention", True),
        ("aten::_scaled_dot_product_efficient_attention", True),
        ("aten::_flash_attention_forward", True),
        ("biases::attend_decomposed (triton)", True),
        ("mine", True),
        ("mine_other", False),
        ("biases::attention_like", False),
        ("aten::log_softmax", False),
        ("aten::addmm", False),
    ],
)
def test_names(name, counted):
    found = attributed(10, event(name, 0, 5), pattern="mine")
    assert found.share == pytest.approx(0.5 if counted else 0.0)


@pytest.mark.parametrize(
    "name",
    [
        *("aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd", "CompiledFunctionBackward"),
        *("aten::softmax", "aten::_safe_softmax", "aten::bmm", "aten::baddbmm", "flash_attn::_flash_attn_forward"),
    ],
)
def test_what_may_hold_attention_is_not_called_none(name):
    found = attributed(10, event("aten::addmm", 0, 4), event(name, 4, 9))
    assert found.share is None
    assert "attention" in found.reason
    named = attributed(10, event(name, 4, 9), pattern=re.escape(name))
    assert (named.share, named.reason) == (pytest.approx(0.5), "")


def test_what_attention_is_written_out_of_is_something_else_beside_known_attention():
    found = attributed(10, event(ATTEND, 0, 5), event("aten::bmm", 5, 9))
    assert found.share == pytest.approx(0.5)


def test_cuda_without_its_kernels():
    """Time of the host would be another quantity under the same name."""
    found = attributed(10, event(ATTEND, 0, 5), device="cuda:0")
    assert (found.share, found.device_seconds, found.reason) == (None, None, "no kernels were recorded")


def test_compiled_code_outside_attention_hides_what_is_in_it():
    found = attributed(10, event("Torch-Compiled Region: 0/0", 0, 9), event("aten::_flash_attention_forward", 1, 3))
    assert found.share is None
    assert "compiled" in found.reason
    assert found.operators == {"aten::_flash_attention_forward": 1}
    inside = attributed(10, event(ATTEND, 0, 5), event("Torch-Compiled Region: 0/0", 1, 4))
    assert inside.share == pytest.approx(0.5)


def test_time_of_the_device():
    """Kernels of what was launched inside; the shadow of a range on the device is no kernel."""
    attend, inner = event("mine", 0, 10, annotation=True), event("aten::mm", 2, 4, node=1)
    other = event("aten::linear", 10, 12, node=2)
    backward = event(ENGINE + "MmBackward0", 20, 30, node=1, of=1, thread=2)
    shadow = {"device": DeviceType.CUDA, "thread": 7}
    attend.append_kernel("mine", 0, 50)
    for launcher, name, took in ((inner, "gemm", 8), (other, "gemm", 20), (backward, "gemm_backward", 12)):
        launcher.append_kernel(name, 0, took)
    found = attributed(
        40,
        *(attend, inner, other, backward),
        event("mine", 100, 150, annotation=True, **shadow),
        event("gemm", 100, 108, **shadow),
        event("gemm", 110, 130, **shadow),
        event("gemm_backward", 130, 142, **shadow),
        pattern="mine",
    )
    assert found.device_seconds == pytest.approx(20e-6)
    assert found.total_seconds == pytest.approx(40e-6)
    assert found.share == pytest.approx(0.5)
    assert found.seconds == pytest.approx(20e-6)
