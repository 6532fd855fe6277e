"""python -m mmfast.cli"""

from mmfast.cli.app import main

main()
