  {
    py::gil_scoped_release release_python_gil;
    handle_manager.Wait(handle);
  }
