  for (int retry_cnt = 0; retry_cnt < MAX_RETRY_TIMES; ++retry_cnt) {
    // A fresh one for each try: the launcher takes none twice.
    const JobProof proof(method, request.getPath(), body);
    try {
      http::Response response = request.send(method, body, proof.Headers());
      const std::string answer(response.body.begin(), response.body.end());
      if (!proof.Proves(response.status, response.headers, answer)) {
        LOG(WARNING) << "HTTP response without proof of the job's secret, got "
                     << response.status;
      } else if (response.status != HTTP_OK &&
                 response.status != HTTP_NOT_FOUND) {
