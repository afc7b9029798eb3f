"""Using a trained model: prediction, explanation."""
