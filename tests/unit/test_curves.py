"""Curves as CSV and as a plot."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from ray_recsys.core.training.curves import write_curves, write_plot
from ray_recsys.core.training.trainer import EpochRecord

RECORDS = [
    EpochRecord(1, 0.9, {}, 100.0, 1.0, 0.0),
    EpochRecord(2, 0.5, {"NDCG@10": 0.1, "<MRR>": 0.3}, 100.0, 1.0, 0.5),
    EpochRecord(3, 0.7, {"NDCG@10": 0.2, "<MRR>": float("nan")}, 100.0, 1.0, 0.5),
]


def test_an_epoch_without_validation_has_empty_cells(tmp_path: Path) -> None:
    write_curves(tmp_path / "curves.csv", RECORDS)
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,NDCG@10,<MRR>,samples_per_s,train_s,validate_s"
    assert lines[1] == "1,0.900000,,,100,1.000,0.000"
    assert lines[2] == "2,0.500000,0.100000,0.300000,100,1.000,0.500"


def test_the_plot_has_a_panel_per_metric_and_a_point_per_epoch(tmp_path: Path) -> None:
    write_plot(tmp_path / "curves.svg", RECORDS)
    text = (tmp_path / "curves.svg").read_text()
    root = ET.fromstring(text)
    named = {"svg": "http://www.w3.org/2000/svg"}
    panels = root.findall("svg:g", named)
    titles = [panel.findtext("svg:text", namespaces=named) for panel in panels]
    assert titles == ["loss", "NDCG@10", "<MRR>"]
    assert [len(panel.findall("svg:circle", named)) for panel in panels] == [3, 2, 1]
    heights = [float(circle.attrib["cy"]) for circle in panels[0].findall("svg:circle", named)]
    assert heights[1] > heights[2] > heights[0]  # the lowest loss is drawn lowest
    assert not re.search(r'(?:src|href)="', text)


def test_a_run_without_epochs_is_an_empty_plot(tmp_path: Path) -> None:
    write_plot(tmp_path / "curves.svg", [])
    assert ET.fromstring((tmp_path / "curves.svg").read_text()).tag.endswith("svg")
