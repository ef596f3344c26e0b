"""ONNX models as nets: operators and idioms against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.onnx_models import MODELS, ModelText, difference


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_the_import_computes_what_onnxruntime_does(model: ModelText, tmp_path: Path) -> None:
    assert difference(model.write(tmp_path), {"x": model.input()}) < 1e-4
