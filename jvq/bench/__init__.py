"""Bench: what inference costs, jvq's ways beside those of others, one table from one run.

    python -m jvq.bench [--models=vit_b,deit_t] [--batches=1,8] [--rounds=9] [--only='jvq-*'] [--out=FILE.json]

Weights and images are random: the work is the same. Every variant is loaded and called first (that is what "load"
shows), then all are timed in turn in every round. A variant is one entry of ``variants.VARIANTS``.
"""
