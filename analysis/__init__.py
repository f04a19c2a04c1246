"""Numbers to findings: features, probing, CKA, KS, calibration, verdicts, tables, figures, the report page.

Needs what `ssl_core` needs, and pandas, scipy, matplotlib and jinja2; knows neither Ray nor MLflow.
"""
