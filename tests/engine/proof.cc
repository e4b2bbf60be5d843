// Prints the proofs of requests with bodies of every length below 300, and which answers they believe.
#include "job_proof.h"
#include <iostream>
using namespace horovod::common;
int main() {
  for (int length = 0; length < 300; ++length) {
    const std::string body(length, '\xe9');
    JobProof proof("PUT", "/global/0", body);
    std::string values;
    std::vector<std::string> said;
    for (const auto& header : proof.Headers()) {
      said.push_back(header.substr(header.find(": ") + 2));
    }
    const std::string answer =
        Hex(HmacSha256(FromHex(std::getenv("HOROVOD_JOB_SECRET")), "200\n" + said[0] + "\n" + said[1]));
    const auto proves = [&](int status, const std::string& text) {
      return proof.Proves(status, {"Server: x", "X-Horovod-Proof: " + text}, body);
    };
    std::string forged = answer;
    forged[length % 64] ^= 1;
    const bool believes_others = proves(200, forged) || proves(404, answer) || proves(200, answer + "0") ||
                                 proves(200, "") || proof.Proves(200, {}, body);
    std::cout << length << " " << said[0] << " " << said[1] << " " << said[2] << " "
              << proves(200, answer) << " " << believes_others << "\n";
  }
}
