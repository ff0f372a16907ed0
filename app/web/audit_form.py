"""From a form as a person filled it in to the page that answers it.

Any site can have a browser send such a form here. It would gain nothing: nothing is kept or changed, the sender cannot
read the answer, and there are no cookies or logins whose owner it could speak for.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace

from fastapi.responses import HTMLResponse

from app.exceptions import InvalidInput
from app.inference.audits import read_labels
from app.schemas.reports import AuditOut, ReportOut
from app.services.reports import ReportService, ReportView
from app.web.audit_page import LabelForm, LabelledImage, audit_page, label_form, problem_page
from app.web.pages import page

_FIELD = re.compile(r"label\.(0|[1-9][0-9]{0,9})")


def answer_form(service: ReportService, job_id: str, fields: Mapping[str, str]) -> HTMLResponse:
    """Count the labels of ``label.POSITION`` fields; 422, with the form as it was, where they cannot be counted.

    Raises as `ReportService.get`, and `InvalidInput` ``unknown_field`` for a field that no form of ours has.
    """
    view = service.get(job_id)
    texts = _texts(view, fields)
    read = read_labels(view.class_names, texts)
    images = ReportOut.of(view).audit.images
    form = replace(label_form(job_id, images, view.class_names), texts=texts, wrong=read.wrong)
    name = view.job.name
    if read.wrong:
        first = min(form.number_of(position) for position in read.wrong)
        told = "1 label is no class" if len(read.wrong) == 1 else f"{len(read.wrong)} labels are no classes"
        problem = f"{told} of the job; see image {first}."
        return page(problem_page(form, name=name, problem=problem), status_code=422)
    try:
        audit = AuditOut.of(service.audit(job_id, list(read.found.items())))
    except InvalidInput as e:
        told = f"{e.detail} You have written {len(read.found)} of {len(images)}."
        return page(problem_page(form, name=name, problem=told), status_code=422)
    request = {"labels": [{"position": position, "label": label} for position, label in read.found.items()]}
    labelled = _labelled(view, form, read.found)
    body = json.dumps(request, ensure_ascii=False)
    return page(audit_page(form, name=name, audit=audit, labelled=labelled, request=body))


def _texts(view: ReportView, fields: Mapping[str, str]) -> dict[int, str]:
    texts: dict[int, str] = {}
    proposed = {image["position"] for image in view.body["audit"]["images"]}
    for field, text in fields.items():
        found = _FIELD.fullmatch(field)
        if found is None or int(found[1]) not in proposed:
            raise InvalidInput("unknown_field", "The form may have the fields label.POSITION of images to label.")
        texts[int(found[1])] = text
    return texts


def _labelled(view: ReportView, form: LabelForm, labels: Mapping[int, str | None]) -> list[LabelledImage]:
    answers = {image["position"]: image for image in view.body["audit"]["images"]}
    return [
        LabelledImage(
            image=image,
            label=labels[image.position],
            zero_shot=view.class_names[answers[image.position]["zero_shot"]],
            adapted=view.class_names[answers[image.position]["adapted"]],
        )
        for image in form.images
        if image.position in labels
    ]
