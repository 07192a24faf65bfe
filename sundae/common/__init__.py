"""What every room needs: errors, files, names, images, precision, compiling, interruption.

Imports: none.
"""
