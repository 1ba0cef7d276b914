from pokegan.cli import main

main()
