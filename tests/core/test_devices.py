"""The order of devices in the mesh, and the number of CPU devices."""

import itertools
from types import SimpleNamespace

import pytest

from cellclr_jax import devices as sharding


def test_devices_of_a_process_are_contiguous(monkeypatch):
    monkeypatch.setattr(sharding, "Mesh", lambda devices, *_, **__: list(devices))
    # The order on a TPU v5e 4x4, along its torus.
    hosts = [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]
    devices = [SimpleNamespace(process_index=host, id=i) for i, host in enumerate(hosts)]
    ordered = sharding.make_mesh(devices)
    assert [host for host, _ in itertools.groupby(d.process_index for d in ordered)] == [0, 1, 2, 3]
    assert sorted(d.id for d in ordered) == list(range(16))


@pytest.mark.parametrize(("cells", "cores", "count"), [(64, 4, 4), (63, 4, 3), (7, 4, 1)])
def test_the_number_of_cpu_devices_divides_the_cells(monkeypatch, cells, cores, count):
    updated = {}
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setattr(sharding.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(sharding.jax.config, "update", updated.__setitem__)
    sharding.use_all_cores(cells)
    assert updated == {"jax_num_cpu_devices": count}
