"""The paper's figures, as PNG and PDF."""
