"""This package's model and KerasHub's with equal weights."""

import keras_hub
import pytest
from support.small_bart import SHAPE, randomize

from bart_export.model import BartBackbone


@pytest.fixture(scope="session")
def backbone():
    model = BartBackbone(**SHAPE)
    randomize(model)
    return model


@pytest.fixture(scope="session")
def keras_hub_backbone():
    model = keras_hub.models.BartBackbone(**SHAPE)
    randomize(model)
    return model
