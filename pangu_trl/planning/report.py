"""A plan in words and numbers."""

from typing import Any

from pangu_trl.runs.counts import counted

from .advice import changes_to_fit, fits
from .memory import GIB, Plan
from .states import ALWAYS
from .traffic import step_transfers

GB = 10**9


def describe(plan: Plan, device_memory: int) -> str:
    """The text that `pangu-trl plan` prints."""
    launch, settings = plan.launch, plan.settings
    place = "process" if launch.on_cpu else "GPU"
    lines = [
        f"{settings.stage} of {settings.model}, {counted(launch.num_devices, place)}, {launch.sharding}, "
        f"{'LoRA' if settings['use_peft'] else 'all weights'}; computed, not measured",
        "",
        f"{'memory of each ' + place:<44} {'GiB':>9}  when",
    ]
    for item in plan.items:
        where = " (host)" if item.on_host and not launch.on_cpu else ""
        when = "" if item.phase == ALWAYS else item.phase
        lines.append(f"  {item.name + where:<42} {item.num_bytes / GIB:9.3f}  {when}".rstrip())
    lines.append(f"  {'peak, with libraries':<42} {plan.peak() / GIB:9.3f}")
    if not launch.on_cpu and (host := plan.peak(on_host=True)):
        lines.append(f"  {'peak of the host, each process':<42} {host / GIB:9.3f}")
    lines += ["", *_verdict(plan, device_memory), "", *_traffic(plan)]
    return "\n".join(lines)


def figures(plan: Plan, device_memory: int) -> dict[str, Any]:
    """The same as numbers, in bytes."""
    num_ranks = plan.launch.num_devices
    return {
        "stage": plan.settings.stage,
        "model": plan.settings.model,
        "devices": num_ranks,
        "sharding": plan.launch.sharding,
        "memory": [
            {"name": item.name, "bytes": item.num_bytes, "on_host": item.on_host, "when": item.phase}
            for item in plan.items
        ],
        "peak_bytes": plan.peak(),
        "peak_bytes_of_host": plan.peak(on_host=True),
        "device_bytes": device_memory,
        "fits": fits(plan, device_memory),
        "sent_bytes": {
            f"{transfer.name} ({transfer.collective})": transfer.sent_by_each(num_ranks)
            for transfer in step_transfers(plan)
        },
    }


def _verdict(plan: Plan, device_memory: int) -> list[str]:
    capacity = f"{device_memory / GIB:.0f} GiB"
    if fits(plan, device_memory):
        return [f"fits: {plan.peak() / GIB:.1f} of {capacity}"]
    made, better = changes_to_fit(plan, device_memory)
    lines = [f"does not fit: {plan.peak() / GIB:.1f} of {capacity}"]
    if fits(better, device_memory):
        lines.append(f"fits with {better.peak() / GIB:.1f} GiB after:")
    else:
        lines.append(f"still {better.peak() / GIB:.1f} GiB, take larger devices or a smaller model, after:")
    return lines + [f"  {change}" for change in made]


def _traffic(plan: Plan) -> list[str]:
    transfers = step_transfers(plan)
    if not transfers:
        return ["nothing is sent: one device"]
    num_ranks = plan.launch.num_devices
    lines = [f"{'sent by each rank in an optimiser step':<44} {'GB':>9}"]
    for transfer in transfers:
        lines.append(
            f"  {transfer.name + ' (' + transfer.collective + ')':<62} {transfer.sent_by_each(num_ranks) / GB:9.3f}"
        )
    total = sum(transfer.sent_by_each(num_ranks) for transfer in transfers)
    lines.append(f"  {'all':<62} {total / GB:9.3f}")
    return lines
