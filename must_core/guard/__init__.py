"""Is an adapted classifier better than zero-shot? Decided without labels.

What MUST optimises, confidence and balance, decides nothing here. Two other things do: vetoes compare simple statistics
of both classifiers and notice a collapse (`vetoes`), and a judge that saw none of the training decides the images on
which the two disagree (`judge`). `verdict` counts its votes on images that were held out of training (`panel`); `watch`
looks at the teacher during training.

Every constant was set on the development seeds of ``python -m bench.guard``; what comes of them on other seeds is in
docs/guard.md.
"""
