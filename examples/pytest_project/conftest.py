def pytest_addoption(parser):
    parser.addoption("--run-broken", action="store_true", help="run the tests of the broken kernel, which fail")
