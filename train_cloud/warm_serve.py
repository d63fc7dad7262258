"""The program of a warm process; see :mod:`train_cloud.warm_process`."""

from train_cloud.warm_process import main

if __name__ == "__main__":
    main()
