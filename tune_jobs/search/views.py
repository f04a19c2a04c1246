"""A study of Optuna's as a sampler or pruner sees it: a snapshot that takes what they write, and stores none of it.

Optuna writes a suggestion parameter by parameter, so a process killed in between leaves half a trial; drawn on a
snapshot, a whole trial is stored at once. What pruners note about a trial is stored after the decision it belongs to.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState


class Snapshot(BaseStorage):  # type: ignore[misc]
    """A storage of one study whose trials are those handed in, and at most one drawn trial. Not for several threads.

    What a sampler or pruner writes is found in `study_attrs` (of the study), in `noted` (of trials handed in, by trial
    id) and in `drawn`.
    """

    def __init__(
        self,
        name: str,
        study_id: int,
        directions: Sequence[StudyDirection],
        trials: Sequence[FrozenTrial],
        system_attrs: dict[str, Any],
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        self._name, self._study_id, self._directions = name, study_id, list(directions)
        self._trials = [t for t in trials if t.state != TrialState.WAITING]
        self._count = 1 + max((t.number for t in trials), default=-1)
        self._system_attrs, self._fixed = system_attrs, None if fixed is None else dict(fixed)
        self._by_id = {t._trial_id: t for t in self._trials}
        self.study_attrs: dict[str, Any] = {}
        self.noted: dict[int, dict[str, Any]] = {}
        self.drawn: FrozenTrial | None = None

    # what is read

    def get_study_id_from_name(self, _: str) -> int:
        return self._study_id

    def get_study_name_from_id(self, _: int) -> str:
        return self._name

    def get_study_directions(self, _: int) -> list[StudyDirection]:
        return self._directions

    def get_study_user_attrs(self, _: int) -> dict[str, Any]:
        return {}

    def get_study_system_attrs(self, _: int) -> dict[str, Any]:
        return {**self._system_attrs, **self.study_attrs}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._by_id[trial_id]

    def get_all_trials(
        self, _: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = [t for t in self._trials if states is None or t.state in states]
        return copy.deepcopy(found) if deepcopy else found

    # what is written

    def create_new_trial(self, *_: Any) -> int:
        self.drawn = FrozenTrial(
            number=self._count,
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={} if self._fixed is None else {"fixed_params": self._fixed},
            intermediate_values={},
        )
        self._trials.append(self.drawn)
        self._by_id[-1] = self.drawn
        return -1

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        trial = self._by_id[trial_id]
        trial.distributions[param_name] = distribution
        trial.params[param_name] = distribution.to_external_repr(param_value_internal)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id != -1:
            self.noted.setdefault(trial_id, {})[key] = value
        else:
            self._by_id[trial_id].system_attrs[key] = value

    def set_study_system_attr(self, _: int, key: str, value: Any) -> None:
        self.study_attrs[key] = value

    # what neither a sampler nor a pruner does

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError("a snapshot is no storage")

    create_new_study = delete_study = get_all_studies = set_study_user_attr = _refuse
    set_trial_state_values = set_trial_intermediate_value = set_trial_user_attr = _refuse

    def study(self, sampler: Any = None, pruner: Any = None) -> Study:
        """The study around this snapshot; without a pruner all trials are seen, whichever bracket they are in."""
        return Study(
            study_name=self._name,
            storage=self,
            sampler=sampler or optuna.samplers.RandomSampler(seed=0),
            pruner=pruner or optuna.pruners.NopPruner(),
        )
