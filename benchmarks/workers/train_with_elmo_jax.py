"""Worker: training by this project. Arguments: config, precision, text, vocabulary, rows, window, softmax."""
