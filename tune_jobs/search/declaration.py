"""What a study writes under `search.space`, as parameters; every mistake gets one message with its key and remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssl_core.config import BLOCKS, PretrainConfig
from ssl_core.errors import ConfigError, nearest
from tune_jobs.search.conditions import conditioned, in_order
from tune_jobs.search.domain import field_of, read_domain
from tune_jobs.search.parameter import SWITCH, Choice, Parameter, Range, is_number, same, shown
from tune_jobs.search.space import LOSSES

if TYPE_CHECKING:
    from tune_jobs.search.space import Space

_WHERE = "search.space"
#: Fields that can have one number a block.
_EACH = ("mse.scale", "barlow.scale")


def read(raw: Any, bases: Mapping[str, PretrainConfig]) -> tuple[Parameter, ...]:
    """The parameters of a space, each after those its conditions name. ConfigError where there is no such space."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{_WHERE}: {raw!r} holds no settings; write what varies, e.g. `loss: [none, mse]`")
    if not raw:
        raise ConfigError(f"{_WHERE}: is empty; name at least one setting that varies, e.g. `loss: [none, mse]`")
    losses = _read_loss(raw["loss"]) if "loss" in raw else None
    switches = _read_blocks(raw["blocks"], losses) if "blocks" in raw else []
    written = [] if losses is None else [Parameter("loss", Choice(losses))]
    written += switches
    conditions: dict[str, Any] = {}  # as their author wrote them
    for key, value in raw.items():
        if key not in ("loss", "blocks"):
            parameters, when = _read_field(key, value, losses, [p.name for p in switches], bases)
            written += parameters
            conditions |= {p.name: when for p in parameters}
    if all(isinstance(p.domain, Choice) and len(p.domain.options) == 1 for p in written):
        raise ConfigError(f"{_WHERE}: nothing varies, as every setting has one option; name another option, or a range")
    domains = {p.name: p.domain for p in written}
    return in_order([conditioned(p, conditions.get(p.name), domains) for p in written])


def _read_loss(raw: Any) -> tuple[str, ...]:
    where = f"{_WHERE}.loss"
    if not isinstance(raw, list | tuple) or not raw:
        raise ConfigError(f"{where}: takes a list of options, e.g. [none, mse, barlow, both]; found {shown(raw)}")
    for at, loss in enumerate(raw):
        if loss is None:
            raise ConfigError(f"{where}: null is no loss; write the word none")
        if not isinstance(loss, str) or loss not in LOSSES:
            raise ConfigError(f"{where}: {shown(loss)} is no loss{nearest(str(loss), LOSSES)}")
        if loss in raw[:at]:
            raise ConfigError(f"{where}: {loss} is named twice; name each option once")
    return tuple(raw)


def _read_blocks(raw: Any, losses: Sequence[str] | None) -> list[Parameter]:
    where = f"{_WHERE}.blocks"
    if not isinstance(raw, list | tuple) or not raw:
        raise ConfigError(f"{where}: takes a list of the blocks that may be on, e.g. [1, 2, 3, 4]; found {shown(raw)}")
    for at, block in enumerate(raw):
        if not any(same(block, known) and isinstance(block, int) for known in BLOCKS):
            raise ConfigError(f"{where}: block {block!r} does not exist; blocks are 1, 2, 3 and 4")
        if block in raw[:at]:
            raise ConfigError(f"{where}: block {block} is named twice; name each block once")
    some = _losses_with("blocks", ("mse", "barlow"), losses)
    return [Parameter(f"{SWITCH}{b}", Choice((False, True)), {"loss": some}) for b in sorted(raw)]


def _losses_with(key: str, sections: Sequence[str], losses: Sequence[str] | None) -> tuple[str, ...]:
    """Those losses of the space with one of these block losses; ConfigError where there are none."""
    if losses is None:
        raise ConfigError(f"{_WHERE}.{key}: needs a loss that uses it; add `loss: [{', '.join(sections)}]`")
    found = tuple(loss for loss in losses if set(LOSSES[loss]) & set(sections))
    if not found:
        raise ConfigError(
            f"{_WHERE}.{key}: no loss of search.space.loss [{', '.join(losses)}] uses it; "
            f"add {' or '.join(sections)} there, or leave {key} out"
        )
    return found


def _read_field(
    key: Any,
    raw: Any,
    losses: Sequence[str] | None,
    switches: Sequence[str],
    bases: Mapping[str, PretrainConfig],
) -> tuple[list[Parameter], Any]:
    """The parameter of a field of the arm, or one a block; and the conditions that are written with it."""
    where = f"{_WHERE}.{key}"
    field = field_of(where, key)
    section = key.partition(".")[0]
    implied = {"loss": _losses_with(key, (section,), losses)} if section in ("mse", "barlow") else {}
    domain, when, each = read_domain(where, raw, field)
    if each:
        _check_each(where, key, domain)
        blocks = _each_block(section, implied["loss"], switches, bases)
        return [Parameter(f"{key}_{b}", domain, there, key, block=b) for b, there in blocks], when
    if switches and key in _EACH and isinstance(domain, Choice):
        for option in domain.options:
            if isinstance(option, list):
                raise ConfigError(
                    f"{where}: {shown(option)} has one number a block, and which blocks are on varies; "
                    f"name single numbers, or one parameter a block: {{choices: [...], each: block}}"
                )
    return [Parameter(key, domain, implied, key, any_block=bool(switches and implied))], when


def _check_each(where: str, key: str, domain: Choice | Range) -> None:
    if key not in _EACH:
        raise ConfigError(f"{where}.each: a value a block is for {' and '.join(_EACH)} alone; leave `each` out")
    if isinstance(domain, Choice):
        for option in domain.options:
            if not is_number(option):
                raise ConfigError(f"{where}: {shown(option)} is no number, which each block needs; name numbers alone")


def _each_block(
    section: str, losses: tuple[str, ...], switches: Sequence[str], bases: Mapping[str, PretrainConfig]
) -> list[tuple[int, dict[str, tuple[Any, ...]]]]:
    """Blocks that this loss may look at, and when it does: by the switches, else as the bases have it."""
    if switches:
        return [(b, {"loss": losses, f"{SWITCH}{b}": (True,)}) for b in BLOCKS if f"{SWITCH}{b}" in switches]
    looked = {loss: own.blocks for loss in losses if (own := getattr(bases[loss], section)) is not None}
    return [(b, {"loss": some}) for b in BLOCKS if (some := tuple(k for k, blocks in looked.items() if b in blocks))]


def check_bases(space: Space, bases: Mapping[str, PretrainConfig]) -> None:
    """ConfigError where what trials with a loss start from has other losses on."""
    loss_domain = next((p.domain for p in space.parameters if p.name == "loss"), None)
    for loss in loss_domain.options if isinstance(loss_domain, Choice) else ():
        on = tuple(section for section in ("mse", "barlow") if getattr(bases[loss], section) is not None)
        if on != LOSSES[loss]:
            has, needs = (" and ".join(names) or "neither mse nor barlow" for names in (on, LOSSES[loss]))
            raise ConfigError(f"search.bases.{loss}: has {has}; trials with loss {loss} start from it, so name {needs}")
