"""The lists of settings of the paper's comparisons."""

import pytest

from hashfield.errors import ConfigError
from hashfield.nn.config import MLPConfig, RadianceFieldConfig
from hashfield.tasks.studies import encodings_study, grid_study


def test_figure_2_has_the_papers_numbers_of_parameters() -> None:
    rows = encodings_study(3, 4096)
    counts = {s.name: s.encoding.reaching(s.finest).n_parameters(3) for s in rows}
    assert counts == {
        "none": 0, "frequency": 0, "dense-single": 33_554_432, "dense-multi": 16_312_048, "hash-14": 494_592,
        "hash-19": 12_599_920,
    }  # fmt: skip
    resolutions = {s.name: s.encoding.reaching(s.finest).layout(3).resolutions.tolist() for s in rows}
    assert resolutions["dense-single"] == [128, 128]
    assert resolutions["dense-multi"] == [16, 23, 32, 45, 63, 88, 124, 173]
    assert [s.paper["paper_psnr"] for s in rows] == [18.56, 22.90, 22.35, 23.62, 22.61, 24.58]


@pytest.mark.parametrize(("name", "n_inputs", "paper"), [("none", 3, 411_648), ("frequency", 96, 438_272)])
def test_deep_networks_have_the_papers_size(name: str, n_inputs: int, paper: int) -> None:
    (setting,) = (s for s in encodings_study(3, 4096) if s.name == name)
    config = RadianceFieldConfig(
        encoding=setting.encoding,
        density_network=MLPConfig(setting.n_neurons, 7),
        color_network=MLPConfig(setting.n_neurons, 1),
    )
    assert config.n_encoded == n_inputs
    size = sum(a * b for shapes in config.network_shapes() for a, b in shapes)
    # The paper's counts hold the padding of inputs and outputs to 8 and 16, and its own encoding of directions.
    assert 0 < (paper - size) / paper < 0.025


def test_two_dimensions() -> None:
    counts = {s.name: s.encoding.reaching(s.finest).n_parameters(2) for s in encodings_study(2, 1856)}
    assert counts["dense-single"] == pytest.approx(33_554_432, rel=1e-3)
    assert counts["dense-multi"] == pytest.approx(16_312_048, rel=1e-2)
    assert 0 < counts["hash-14"] < counts["hash-19"] < counts["dense-multi"]
    with pytest.raises(ConfigError, match="n_dims: expected 2 or 3, got 4"):
        encodings_study(4, 1000)


def test_grid_study_is_every_combination() -> None:
    settings = grid_study((2, 4), (8, 16), (14, 19), 2048)
    assert len({s.name for s in settings}) == len(settings) == 8
    assert settings[0].name == "F2-L8-T14" and settings[0].columns == {"F": 2, "L": 8, "log2_T": 14}
    assert all(s.encoding.reaching(s.finest).layout(3).resolutions[-1] == 2048 for s in settings)
