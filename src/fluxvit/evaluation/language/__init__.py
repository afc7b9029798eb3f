"""Tests of models that know language: retrieval, zero-shot classification, video QA and descriptions."""
