"""Files that hold rows, whatever the rows say: read, split, unpickled safely, written."""
