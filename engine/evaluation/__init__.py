"""What a found cell is worth: retraining recipes, few-shot tests, classifiers over many episodes at once."""
