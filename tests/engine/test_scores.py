import math

import pytest
import torch

from returnn_hydra.batch import Loss
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.scores import Score, ScoreSums, format_number, format_scores


def test_score_of_an_epoch_is_sum_over_count_not_a_mean_of_means():
    sums = ScoreSums()
    sums.add({"ce": Loss(torch.tensor(6.0), 2)})
    sums.add({"ce": Loss(torch.tensor(1.0), torch.tensor(8))})
    assert sums.scores()["ce"] == Score(7.0, 10.0)
    assert sums.scores()["ce"].mean == pytest.approx(0.7)


def test_reading_in_between_changes_nothing():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(100, generator=generator)
    often, once = ScoreSums(), ScoreSums()
    for value in values:
        often.add({"ce": Loss(value, 3)})
        often.scores()
        once.add({"ce": Loss(value, 3)})
    assert often.scores() == once.scores()


def test_state_goes_on_where_it_was():
    first = ScoreSums()
    first.add({"ce": Loss(torch.tensor(1.5), 2), "error": Loss(torch.tensor(1), 2, as_error=True)})
    second = ScoreSums()
    second.load_state_dict(first.state_dict())
    for sums in (first, second):
        sums.add({"ce": Loss(torch.tensor(2.5), 2)})
    assert first.scores() == second.scores() == {"ce": Score(4.0, 4.0), "error": Score(1.0, 2.0)}


def test_a_score_without_items_is_nan():
    assert math.isnan(Score(0.0, 0.0).mean)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.5, "0.500"), (0.0001, "1.000e-04"), (12345.0, "1.234e+04"), (1000.0, "1000.000")],
)
def test_numbers_as_in_returnn(value, text):
    assert format_number(value) == text


def test_one_score_is_shown_without_its_name():
    assert format_scores({"ce": Score(1.0, 2.0)}) == "0.500"
    assert format_scores({}) == "(no sequences)"
    assert format_scores({"ce": Score(1.0, 2.0), "error": Score(1.0, 4.0)}) == "ce 0.500 error 0.250"


def test_records_survive_json():
    record = EpochRecord(3, 0.1, {"train": {"ce": Score(1.0, 3.0)}, "dev": {"ce": Score(0.3, 7.0)}}, 12, {"train": 1.5})
    assert EpochRecord.from_json(record.to_json()) == record
    assert record.means() == {"train/ce": 1 / 3, "dev/ce": 0.3 / 7}
