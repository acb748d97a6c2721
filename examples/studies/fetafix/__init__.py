"""The FetaFix cases, rebuilt: see README.md."""
