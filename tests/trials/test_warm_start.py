"""Weights of an earlier run: which layers are taken, to the bit, what is said and what is refused."""

import json

import numpy as np
import pytest
import xarray as xr

from eos_sde import trial_report
from eos_sde.bridge.networks import mlp
from eos_sde.trials import compare, train
from eos_sde.trials.contenders import contender
from eos_sde.trials.trial import split_task
from eos_sde.trials.warm_start import Earlier, earlier_run, layers_of, warm_weights
from solvers.errors import InvalidInput
from tests.trials.conftest import TINY


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A finished run as `train` leaves it, without training: one hidden layer of four, ten classes."""
    return kept(tmp_path_factory.mktemp("earlier"), mlp((16, 4, 10)), 7.0)


def kept(folder, network, value, **changed):
    weights = value + np.arange(network.size)
    contents = {"final_params": ("weight", weights), "diverged": ((), False)}
    attrs = {"task": "digits-mlp", "rule": "caeo", "seed": 3, "layers": json.dumps(layers_of(network))}
    xr.Dataset(contents, attrs=attrs | changed).to_netcdf(folder / "run.nc", engine="h5netcdf")
    return folder


def test_layers_that_fit_are_taken_and_a_head_is_drawn_whole(earlier):
    """By hand: 16 x 4 and 4 of the hidden layer, of the head neither weights nor biases."""
    one = earlier_run(earlier)
    fresh = -np.ones(mlp((16, 4, 3)).size)
    weights, taken, drawn = warm_weights(one, mlp((16, 4, 3)), fresh)
    assert taken == [".weights[0]", ".biases[0]"]
    assert drawn == [".weights[1]", ".biases[1]"]
    np.testing.assert_array_equal(weights[:64], 7.0 + np.arange(64))  # weights come first, layer by layer
    np.testing.assert_array_equal(weights[64:76], -1.0)
    np.testing.assert_array_equal(weights[76:80], 7.0 + 104 + np.arange(4))
    np.testing.assert_array_equal(weights[80:], -1.0)
    same, taken, drawn = warm_weights(one, mlp((16, 4, 10)), np.zeros(mlp((16, 4, 10)).size))
    np.testing.assert_array_equal(same, one.weights)
    assert (len(taken), drawn) == (4, [])


def test_biases_that_would_fit_do_not_come_without_their_weights(earlier):
    """Another width into the head: its ten biases have the same shape, and are drawn with the weights."""
    other = Earlier(np.zeros(mlp((16, 5, 10)).size), layers_of(mlp((16, 5, 10))), "", "another")
    with pytest.raises(InvalidInput, match="no layer of tanh 16-4-10 has the shape"):
        warm_weights(other, mlp((16, 4, 10)), np.zeros(mlp((16, 4, 10)).size))


def test_a_trial_starts_there_whatever_the_folder_is_called(tiny, earlier, tmp_path):
    trial = tiny("sgd", start=str(earlier))
    weights, words = trial.weights()
    np.testing.assert_array_equal(weights, earlier_run(earlier).weights)
    assert words == "starts from digits-mlp under caeo, seed 3: 4 arrays taken, all of them"
    assert "start" not in tiny("sgd").settings
    elsewhere = kept(tmp_path, mlp((16, 4, 10)), 7.0)
    assert tiny("sgd", start=str(elsewhere)).settings == trial.settings
    kept(tmp_path, mlp((16, 4, 10)), 8.0)
    assert tiny("sgd", start=str(elsewhere / "run.nc")).settings != trial.settings


def test_what_is_no_earlier_run_is_refused_before_any_work(tiny, earlier, tmp_path):
    def refused(words, **settings):
        with pytest.raises(InvalidInput, match=words):
            train(tiny("sgd", **settings))

    refused("is no finished run: give the folder of one", start=str(tmp_path / "nowhere"))
    (tmp_path / "run.nc").write_text("text")
    refused("is no dataset of a run", start=str(tmp_path))
    xr.Dataset({"final_params": ("weight", [1.0])}).to_netcdf(tmp_path / "old.nc", engine="h5netcdf")
    refused("does not tell its layers: make the run again", start=str(tmp_path / "old.nc"))
    network = mlp((16, 4, 10))
    contents = {"final_params": ("weight", np.zeros(network.size)), "diverged": ((), True)}
    lost = xr.Dataset(contents, attrs={"layers": json.dumps(layers_of(network))})
    lost.to_netcdf(tmp_path / "lost.nc", engine="h5netcdf")
    refused("is of a run that diverged", start=str(tmp_path / "lost.nc"))
    refused("no layer of tanh 16-6-10", start=str(earlier), task_settings=TINY | {"hidden": (6,)})
    with pytest.raises(InvalidInput, match=r"rule='sgd:from=.*from=nowhere-1 is no finished run"):
        compare("digits-mlp", store=tmp_path, rules=("sgdm", "sgd:from=nowhere-{seed}"), task_settings=TINY, steps=20,
                rows=10, batch_size=8, seed=1)  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_from_another_and_says_so(tiny, tmp_path):
    """The first row is the loss of the earlier weights; a comparison takes the earlier run of each seed."""
    before = {seed: train(tiny("sgd", seed=seed), folder=tmp_path / f"old-{seed}") for seed in range(5)}
    trial = tiny("sgdm", start=str(tmp_path / "old-3"))
    run = train(trial)
    loss = split_task(trial).training.loss(before[3]["final_params"].values)
    np.testing.assert_allclose(run["train_loss"][0], loss, rtol=1e-12)
    assert "starts from digits-mlp under sgd, seed 3" in trial_report.run_in_words(run)
    name = f"sgdm:from={tmp_path}/old-{{seed}}"  # a folder for each seed
    found = compare("digits-mlp", store=tmp_path / "compare", rules=("sgdm", name), task_settings=TINY, steps=20,
                    rows=10, batch_size=8, seeds=3, tuning_seeds=2, points=3)  # fmt: skip
    for seed in (2, 3, 4):
        first = found["train_loss_path"].sel(rule=name, seed=seed)[0]
        np.testing.assert_allclose(first, before[seed]["train_loss"][-1], rtol=1e-12)
    assert "all of them" in trial_report.comparison_in_words(found)
    found.to_netcdf(tmp_path / "compare" / "compare.nc", engine="h5netcdf")
    for seed in (0, 3):  # one that tuned, one that judged: the runs at the knob that was chosen
        folder = contender(f"sgd:from={tmp_path}/compare/sgdm").start_of(seed)
        settings = json.loads(xr.load_dataset(f"{folder}/run.nc", engine="h5netcdf").attrs["settings"])
        assert (settings["seed"], settings["eta"]) == (seed, found["knob"].sel(rule="sgdm"))
    for start, words in (("compare/cdat", "has no runs of 'cdat'"), ("compare/sgdm", "has no run of seed 9")):
        with pytest.raises(InvalidInput, match=words):
            contender(f"sgd:from={tmp_path}/{start}").start_of(9)
