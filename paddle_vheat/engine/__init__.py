"""One trainer for every task: loop, checkpoint, evaluation, prediction, export."""
