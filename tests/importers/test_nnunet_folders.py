"""Where a trained network of nnU-Net lies in what the user names; of names alone, so nothing of nnU-Net is needed."""

import pytest

pytest.importorskip("torch")

from unet_engine.errors import ModelError
from unet_export.importers.nnunet.folders import checked, located


def trainer(folder):
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text("{}")
    return folder


def test_the_folder_of_all_results_holds_what_its_data_sets_hold(tmp_path):
    first = trainer(tmp_path / "nnUNet_results" / "Dataset001_X" / "T__P__2d")
    assert located(tmp_path / "nnUNet_results").root == first
    trainer(tmp_path / "nnUNet_results" / "Dataset002_Y" / "T__P__2d")
    found = located(tmp_path / "nnUNet_results")
    with pytest.raises(ModelError, match="Dataset001_X/T__P__2d, Dataset002_Y/T__P__2d"):
        checked(tmp_path / "nnUNet_results", found)


def test_other_folders_are_not_searched(tmp_path):
    trainer(tmp_path / "a" / "b" / "T__P__2d")
    assert located(tmp_path) is None
    assert located(tmp_path / "a" / "b").root.name == "T__P__2d"
