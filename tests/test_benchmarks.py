import json
import re
import sys

import numpy as np
import pytest
import torch

from benchmarks import (
    budget_tradeoff,
    compile_case,
    compile_cost,
    exactness,
    gather,
    harness,
    latency,
    layout,
    memory,
    packing,
    switch,
    torch_pruning,
)
from benchmarks.environment import environment
from benchmarks.masks import STYLES, make_domains, masked_convolutions
from benchmarks.networks import NETWORKS, resnet50, wrn_28_4


@pytest.fixture(scope="module")
def wrn():
    return wrn_28_4()


def weight_share(model, domain):
    layers = masked_convolutions(model)
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    used = sum(sizes[w] * m.on.double().mean().item() for w, m in domain.masks.items())
    return used / sum(sizes.values())


def test_resnet50_has_the_names_and_sizes_of_torchvision():
    model, example = resnet50()
    names = dict(model.named_parameters())
    assert sum(p.numel() for p in names.values()) == 25_557_032
    assert names["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert names["layer2.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert names["layer1.0.bn3.bias"].shape == (256,)
    assert names["fc.weight"].shape == (1000, 2048)
    assert model.layer3[0].conv2.stride == (2, 2) and example.shape == (1, 3, 224, 224)


def test_wrn_28_4_has_28_layers(wrn):
    model, example = wrn
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) + 1 + 2 == 28
    assert model.fc.in_features == 256 and example.shape == (1, 3, 64, 64)
    assert 5.8e6 < sum(p.numel() for p in model.parameters()) < 5.95e6


@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_keep_their_scale_and_follow_the_seed(network):
    model, x = NETWORKS[network]()
    with torch.no_grad():
        y = model(x)
        assert torch.equal(y, NETWORKS[network]()[0](x))
        assert not torch.equal(y, NETWORKS[network](seed=1)[0](x))
    # Between 1/10 and 10: far from where float32 loses digits or a ReLU dies.
    assert 0.1 < y.std() < 10


def test_regular_masks_keep_a_half_with_35_percent_of_it_common(wrn):
    domains = make_domains(wrn[0])
    assert set(next(iter(domains.values())).masks) == set(masked_convolutions(wrn[0]))
    for weight, layer in masked_convolutions(wrn[0]).items():
        on = torch.stack([domain.masks[weight].on for domain in domains.values()])
        kept = round(layer.in_channels * 0.5)
        assert (on.sum(dim=1) == kept).all()
        # At least the core; the rest of the channels meet by chance, seldom in six domains.
        assert round(0.35 * kept) <= on.all(dim=0).sum() <= round(0.35 * kept) + 2


def test_learned_masks_are_irregular_and_meet_both_shares(wrn):
    domains = make_domains(wrn[0], style="learned")
    layers = masked_convolutions(wrn[0])
    on = {
        weight: torch.stack([domain.masks[weight].on for domain in domains.values()])
        for weight in layers
    }
    common = sum(s.all(dim=0).sum().item() for s in on.values())
    kept = sum(s.sum().item() for s in on.values()) / len(domains)
    assert common / kept == pytest.approx(0.35, abs=0.01)
    for domain in domains.values():
        # Rounding to whole channels moves a layer's rate by half a channel at most.
        assert weight_share(wrn[0], domain) == pytest.approx(0.5, abs=0.01)
    rates = np.array([s.double().mean(dim=1).numpy() for s in on.values()])
    assert rates.std() > 0.1 and rates.min() < 0.35
    whole = (rates == 1).sum(axis=0)
    assert (whole[1::2] > 0).all() and (whole[::2] == 0).all()


@pytest.mark.parametrize("style", STYLES)
def test_scores_are_above_zero_where_the_switches_are_on(wrn, style):
    switches = make_domains(wrn[0], 3, style=style)
    scores = make_domains(wrn[0], 3, style=style, scores=True)
    for name, domain in switches.items():
        for weight, mask in domain.masks.items():
            other = scores[name].masks[weight]
            assert other.is_score and not mask.is_score
            assert torch.equal(other.on, mask.on)


def test_every_domain_has_its_own_norms_and_head(wrn):
    domains = make_domains(wrn[0], 4)
    assert [len(d.state["fc.bias"]) for d in domains.values()] == [10, 46, 215, 1000]
    norms = {
        f"{name}.{leaf}"
        for name, module in wrn[0].named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for leaf in ("weight", "bias", "running_mean", "running_var")
    }
    first, second = list(domains.values())[:2]
    assert set(first.state) == norms | {"fc.weight", "fc.bias"}
    assert all(not torch.equal(first.state[name], second.state[name]) for name in norms)


def test_masked_dense_multiplies_the_input_by_the_switches():
    case = harness.make_case("wrn-tiny", "learned", 1)
    (domain,) = case.domains.values()
    expected = harness.masked_dense(case.model, domain, masked=False)
    switches = torch_pruning.switches_of(expected, domain)
    for module, on in switches.items():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs, on=on: inputs[0] * on[None, :, None, None]
            )
    x = case.example.numpy()
    masked = harness.reference(harness.masked_dense(case.model, domain), x)
    # Both in float64; sums in another order differ by a few units in the last place.
    assert harness.relative_error(masked, harness.reference(expected, x)) < 1e-12


def test_relative_error_is_infinite_where_outputs_cannot_be_compared():
    assert harness.relative_error(np.zeros(2), np.zeros(3)) == np.inf
    assert harness.relative_error(np.array([np.nan]), np.zeros(1)) == np.inf
    assert harness.relative_error(np.array([1.0, 3.0]), np.array([1.0, 4.0])) == 0.25


def test_timing_refuses_a_wrong_output():
    with pytest.raises(AssertionError, match=re.escape("slow: relative error 1.00e+00, at most")):
        harness.time_in_turn({"slow": lambda: np.zeros(1)}, {"slow": np.ones(1)}, rounds=1)


def test_timing_takes_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) or np.ones(1) for name in "ab"}
    seconds = harness.time_in_turn(calls, {name: np.ones(1) for name in "ab"}, rounds=2)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    # A check, two rounds of warm-up, two rounds that count, a check; a turn is two calls.
    assert "".join(order) == "ab" + "aabb" + "bbaa" + "aabb" + "bbaa" + "ab"


def test_environment_says_where_and_what():
    found = environment()
    assert found["versions"]["torch"] == torch.__version__
    assert {"processor", "cores", "system", "python", "commit"} <= set(found)
    json.dumps(found)


def test_torch_pruning_is_exact_only_where_all_readers_agree():
    case = harness.make_case("wrn-tiny", "regular", 1)
    (domain,) = case.domains.values()
    masked = harness.masked_dense(case.model, domain)
    x = case.example.numpy()
    expected, whole = harness.reference(masked, x), torch_pruning.macs(masked, case.example)
    error, left = {}, {}
    for mode, prune in torch_pruning.MODES.items():
        model = harness.masked_dense(case.model, domain)
        prune(model, case.example, torch_pruning.switches_of(model, domain))
        error[mode] = harness.relative_error(harness.reference(model, x), expected)
        left[mode] = torch_pruning.macs(model, case.example) / whole
    # Both in float64: exact but for the order of sums, against a network that lost live channels.
    assert error["agree"] < 1e-12 and error["default"] > 0.01
    assert left["default"] < left["agree"] < 1


def test_macs_are_counted_by_hand():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 10)
    )
    counted = torch_pruning.macs(model, torch.zeros(1, 3, 8, 8))
    assert counted == 4 * 4 * 8 * 3 * 9 + 8 * 16 * 10


SCRIPTS = {
    budget_tradeoff: (["--network", "wrn-tiny"], 6, "importance kept"),
    exactness: (["--networks", "wrn-tiny", "--styles", "learned", "--domains", "2"], 2, "mapped"),
    latency: (["--networks", "wrn-tiny", "--domains", "2", "--rounds", "2"], 12, "over dense"),
    gather: (["--network", "wrn-tiny", "--rounds", "1"], 8, "ratio"),
    layout: (["--networks", "wrn-tiny", "--counts", "2"], 2, "grouped"),
    packing: (
        ["--rows", "32", "--filters", "64", "--slabs", "1", "2", "--mebibytes", "1"],
        2,
        "LINE_NS",
    ),
    compile_cost: (["--network", "wrn-tiny", "--counts", "1"], 1, "peak MiB"),
    torch_pruning: (["--networks", "wrn-tiny", "--domains", "1", "--rounds", "2"], 5, "exact"),
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_scripts_run_and_write_their_results(script, monkeypatch, tmp_path, capsys):
    arguments, count, column = SCRIPTS[script]
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    script.main()
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert len(result["rows"]) == count and all(column in row for row in result["rows"])
    assert "processor" in result["environment"]
    if script is exactness:
        assert all(max(r["portable"], r["mapped"]) <= 1e-5 for r in result["rows"])
    assert str(path) in capsys.readouterr().out.replace("\n", "")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folders = {count: tmp_path_factory.mktemp("bundle") for count in (2, 3)}
    with pytest.MonkeyPatch.context() as patch:
        for count, folder in folders.items():
            arguments = ["--network", "wrn-tiny", "--domains", str(count)]
            arguments += ["--targets", "native"] if count == 3 else []
            patch.setattr(sys, "argv", ["script", str(folder), *arguments])
            compile_case.main()
    return [str(folder / "wrn-tiny-regular") for folder in folders.values()]


def test_memory_is_measured_by_what_the_bundles_have(bundles, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["script", *bundles, "--repeats", "1"])
    memory.main()
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    setups = [(row["domains"], row["set-up"]) for row in rows]
    assert setups == [
        *((2, name) for name in (*memory.NATIVE, *memory.ONNX)),
        *((3, name) for name in memory.NATIVE),
    ]
    assert all(row["without arenas"] <= row["PSS MiB"] for row in rows)
    assert all((row["MiB per further domain"] is None) == (row["domains"] == 2) for row in rows)


def test_a_switch_takes_less_than_a_millisecond(bundles, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["script", bundles[0], "--count", "100", "--runs", "10"])
    switch.main()
    (row,) = json.loads((tmp_path / "switch.json").read_text())["rows"]
    assert 0 < row["back to back us"] < 1000 and 0 < row["between runs us"] < 1000
