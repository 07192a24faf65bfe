"""What every room needs: errors, files, names, images, precision, compiling, interruption.

It imports no other room.
"""
