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
        ("native:cuda:1", Runner("native", "cuda:1")),
        ("native:cuda:1:float16", Runner("native", "cuda:1", "float16")),
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


def test_what_a_name_leaves_out_is_filled_in_for_the_native_engine() -> None:
    assert Runner("native").filled("cuda", "float16") == Runner("native", "cuda", "float16")
    assert Runner("native", "cpu").filled("cuda", None) == Runner("native", "cpu")
    assert Runner("onnxruntime").filled("cuda", "float16") == Runner("onnxruntime")
    places = [Runner("native"), Runner("native", "cuda:1"), Runner("tensorrt")]
    assert [runner.on_host for runner in places] == [True, False, False]


def test_the_processor_is_the_device_of_engines_that_name_none() -> None:
    engine = Runner.parse("onnxruntime:cpu").load(read_bundle(bundle()), "first", 1)
    assert (engine.name, device_of(engine), precision_of(engine)) == (
        "onnxruntime", "cpu", "float32",
    )  # fmt: skip


def test_a_device_that_an_engine_lacks_is_named() -> None:
    with pytest.raises(BackendUnavailableError, match="no onnxruntime engine on cuda in float32"):
        Runner.parse("onnxruntime:cuda").load(read_bundle(bundle()), "first", 1)
