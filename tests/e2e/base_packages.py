"""What an environment with `pip install fedsys` alone does not have."""

ABSENT = (
    "PIL", "absl", "dp_accounting", "google.rpc", "grpc_health", "httpx", "jinja2", "matplotlib",
    "onnx", "onnxruntime", "onnxscript", "opacus", "optuna", "pandas", "prometheus_client",
    "pyarrow", "ray", "scipy", "sklearn", "sqlalchemy", "starlette", "threadpoolctl", "torch",
)  # fmt: skip
WITHOUT = f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n"
"""Makes every import of them fail, as the first lines of a process."""
