"""How engines are named, and what is loaded by these names."""

from __future__ import annotations

import pytest
from tiny_checkpoints import bundle

from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.errors import BackendUnavailableError, UsageError
from mdprune_deploy.measure.runner import Runner, device_of, precision_of


@pytest.mark.parametrize(
    ("text", "runner"),
    [
        ("native", Runner("native")),
        ("native:cuda", Runner("native", "cuda")),
        ("native:cuda:float16", Runner("native", "cuda", "float16")),
    ],
)
def test_names_are_read_and_written_alike(text: str, runner: Runner) -> None:
    assert Runner.parse(text) == runner and str(runner) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("native:", "ENGINE\\[:DEVICE\\[:PRECISION\\]\\] is needed"),
        ("native:cuda:float16:more", "ENGINE\\[:DEVICE"),
        ("torch:cuda", "unknown engine 'torch'; there are native"),
    ],
)
def test_names_that_are_none(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Runner.parse(text)


def test_the_processor_is_the_device_of_engines_that_name_none() -> None:
    engine = Runner.parse("onnxruntime:cpu").load(read_bundle(bundle()), "first", 1)
    assert (engine.name, device_of(engine), precision_of(engine)) == (
        "onnxruntime", "cpu", "float32",
    )  # fmt: skip


def test_a_device_that_an_engine_lacks_is_named() -> None:
    with pytest.raises(BackendUnavailableError, match="no onnxruntime engine on cuda in float32"):
        Runner.parse("onnxruntime:cuda").load(read_bundle(bundle()), "first", 1)
