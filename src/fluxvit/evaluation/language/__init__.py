"""Tests of models that know language: retrieval, zero-shot classification and video QA."""
