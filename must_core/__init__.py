"""MUST: masked unsupervised self-training of CLIP image classifiers (Li, Savarese, Hoi; ICLR 2023).

A training library of its own: it knows torch and open_clip, and nothing of HTTP, queues or tables. Importing this
package imports nothing heavy; import the module you need.
"""

__version__ = "0.1.0"
