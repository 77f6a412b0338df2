"""LogisticProbe is a scikit-learn estimator, equal to StandardScaler and LogisticRegression."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from stratascope.errors import InvalidInputError
from stratascope.probe import LogisticProbe


@pytest.mark.filterwarnings("ignore")
def test_passes_scikit_learns_checks():
    failed = [row["check_name"] for row in check_estimator(LogisticProbe(), on_fail=None) if row["status"] == "failed"]
    assert failed == []


@pytest.mark.parametrize("classes", [2, 3])
def test_equal_to_the_pipeline(classes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 12)) * 3 + 5
    y = np.array(["no", "perhaps", "yes"])[(x[:, :classes] + rng.standard_normal((200, classes))).argmax(axis=1)]
    ours = LogisticProbe(C=0.1).fit(x, y)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-10)).fit(x, y)
    assert list(ours.classes_) == sorted(set(y))
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-4)
    assert ours.score(x, y) == theirs.score(x, y)
    np.testing.assert_allclose(ours.coef_ * ours.scale_, theirs[-1].coef_, atol=1e-3)


def test_refuses_a_strength_that_is_none():
    with pytest.raises(InvalidInputError, match="C > 0"):
        LogisticProbe(C=-1).fit(np.eye(4), [0, 1, 0, 1])
