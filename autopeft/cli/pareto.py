"""`autopeft pareto`: the front, the baselines, and whether the search was worth it."""

from __future__ import annotations

from autopeft.cli.arguments import Json, StudyFolder


def run(folder: StudyFolder, as_json: Json = False) -> None:
    """Show the Pareto front beside the baselines, and say whether the search beat them.

    The numbers are those of the report.

    Example: autopeft pareto runs/reviews
    """
    from autopeft.cli.console import print_json
    from autopeft.cli.tables import print_front
    from autopeft.report.summary import summarise
    from autopeft.study.study import Study

    with Study.open(folder, readonly=True) as study:
        summary = summarise(study)
    if as_json:
        chosen = ("schema", "name", "definition", "verdict", "front", "baselines", "finals", "noise")
        print_json({key: value for key, value in summary.to_dict().items() if key in chosen})
    else:
        print_front(summary)
