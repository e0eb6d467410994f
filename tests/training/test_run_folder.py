"""A run resumes with its own settings; those that its record lacks have their defaults."""

import json

import pytest
from etils import epath

from cellclr_jax import default_config
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.run_folder import open_run, read_config, write_config


@pytest.fixture
def workdir(tmp_path):
    folder = epath.Path(tmp_path)
    write_config(default_config.get_config(), folder)
    return folder


def change(workdir, edit):
    content = json.loads((workdir / "config.json").read_text())
    edit(content)
    (workdir / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("temperature", 0.5, r"temperature: was 0\.1, now 0\.5"),
        ("model.head.width", 64, "model.head.width: was 128, now 64"),
        ("views.add_noise.probability", 0.25, r"views.add_noise.probability: was 0\.5"),
        ("micro_batch_size", 64, "micro_batch_size: was 0, now 64"),
    ],
)
def test_differences_are_named(workdir, path, value, message):
    config = default_config.get_config()
    config.update_from_flattened_dict({path: value})
    with pytest.raises(BadUse, match=message):
        open_run(workdir, config)


@pytest.mark.parametrize("path", ["data_dir", "data_access", "log_every", "online.every_epochs"])
def test_settings_without_effect_on_results_may_differ(workdir, path):
    config = default_config.get_config()
    config.update_from_flattened_dict({path: 7 if path[0] in "lo" else "elsewhere"})
    assert config != default_config.get_config()
    open_run(workdir, config)  # which raises where it is another run


def forget(content):
    """Removes settings, as in the record of an older run."""
    for name in ("loss_block_size", "micro_batch_size", "online", "data_access"):
        del content[name]
    del content["model"]["remat"]


def test_a_setting_missing_in_the_record_has_its_default(workdir):
    change(workdir, forget)
    config = default_config.get_config()
    open_run(workdir, config)
    assert read_config(workdir).to_dict() == json.loads(config.to_json())
    config.model.remat = True
    with pytest.raises(BadUse, match=r"model\.remat: was False, now True"):
        open_run(workdir, config)


def test_an_operation_added_to_the_defaults_does_not_change_an_older_run(workdir):
    change(workdir, lambda content: content["views"].pop("elastic"))
    requested = default_config.get_config()
    run = open_run(workdir, requested)
    assert "elastic" not in run.config.views
    assert "elastic" in requested.views
    assert set(run.config.views) == set(read_config(workdir).views)
    assert run.notes == ("note: views.elastic is left out: the run began without it",)


def test_a_missing_setting_of_an_operation_has_the_default_of_the_operation(workdir):
    config = default_config.get_config()
    change(workdir, lambda content: content["views"]["elastic"].pop("smoothness"))
    assert open_run(workdir, config).config == config
    # The config's default, 0.5, is not that of the operation, with which the run trained.
    change(workdir, lambda content: content["views"]["add_noise"].pop("probability"))
    with pytest.raises(BadUse, match=r"views\.add_noise\.probability: was 1\.0, now 0\.5"):
        open_run(workdir, config)


def test_a_requested_operation_missing_in_the_record_is_an_error(workdir):
    change(workdir, lambda content: content["views"].pop("elastic"))
    config = default_config.get_config()
    config.views.elastic.probability = 0.9
    with pytest.raises(BadUse, match=r"views\.elastic: was None"):
        open_run(workdir, config)


def test_a_recorded_operation_missing_in_the_request_is_an_error(workdir):
    config = default_config.get_config()
    del config.views.elastic
    with pytest.raises(BadUse, match=r"views\.elastic: .*now None"):
        open_run(workdir, config)


def test_an_empty_or_missing_folder_is_a_new_run(tmp_path):
    config = default_config.get_config()
    for folder in (tmp_path, tmp_path / "missing"):
        run = open_run(folder, config)
        assert (run.config, run.progress, run.resumes, run.notes) == (config, {}, False, ())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[]", "3", b"\xff\xfe"])
def test_a_damaged_config_is_an_error(workdir, content):
    data = content if isinstance(content, bytes) else content.encode()
    (workdir / "config.json").write_bytes(data)
    with pytest.raises(BadData, match="not a readable config"):
        open_run(workdir, default_config.get_config())
