"""`lorif-hf estimate`: what each preset would cost, to people and to programs."""

import json

from peft import LoraConfig
from terminal import differences, documented, refused, run

from lorif_hf.estimating.costs import PRESETS, estimates
from lorif_hf.estimating.empty_models import empty_model


def test_estimate_says_what_each_preset_would_cost(saved):
    result = run("estimate", saved / "model", "--num-examples", 1000, "--length", 8, "--flops", "1e9")
    shown = " ".join(result.stdout.split())  # the title is broken where the path is long
    assert "1,000 examples of 8 tokens" in shown and "Times are for 1e+09 operations a second." in shown
    lines = {line.split()[1]: line for line in result.stdout.splitlines() if line.startswith("│")}
    assert list(lines) == ["default", "smallest", "best", "paper", "logra", "trak"]
    assert " 192 " in lines["paper"] and " 4,100 " in lines["trak"] and "MB" in lines["trak"]
    assert "!" not in result.stdout
    small = run("estimate", saved / "model", "--flops", "1e9", "--memory", "1MB", "--disk", "1MB").stdout
    assert "! More than there is (1.0 MB of memory and 1.0 MB of disk): default" in " ".join(small.split())


def test_estimate_as_json_says_the_same(saved):
    arguments = ["estimate", saved / "model", "--num-examples", 1000, "--length", 8, "--flops", "1e9", "--json"]
    said = json.loads(run(*arguments, "--memory", "1GB", "--disk", "100kB").stdout)
    costs = estimates(
        empty_model(str(saved / "model")), 1000, 8, {name: make() for name, make in PRESETS.items()}, 1e9
    )
    assert differences(said, documented("estimate")) == []
    assert list(said["presets"]) == list(PRESETS) and said["machine"] == {"flops": 1e9, "memory": 10**9, "disk": 10**5}
    for name, preset in said["presets"].items():
        cost = costs[name]
        assert (preset["bytes_per_example"], preset["index_bytes"]) == (cost.bytes_per_example, cost.index_bytes)
        assert preset["memory"] == cost.memory and sum(preset["seconds"].values()) == cost.seconds.total
        assert preset["fits"] == (preset["disk"] <= 10**5) and preset["problem"] is None


def test_estimate_of_an_adapter_is_of_its_base_and_of_what_was_trained(saved, tmp_path):
    config = LoraConfig(
        r=2, target_modules=["c_fc"], base_model_name_or_path=str(saved / "model"), inference_mode=True
    )
    config.save_pretrained(tmp_path)
    shown = " ".join(run("estimate", tmp_path, "--flops", "1e9").stdout.split())
    assert "100.0% of the trained parameters are tracked" in shown and "the model in float32" in shown


def test_estimate_of_nothing_is_said_in_one_message(tmp_path):
    assert refused("estimate", tmp_path).startswith(f"No model config is found at {tmp_path} (Unrecognized model")
