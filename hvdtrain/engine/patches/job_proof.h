// Proof that both ends of a request know the job's secret; horovod/runner/common/util/proof.py is its twin.

#ifndef HOROVOD_GLOO_JOB_PROOF_H
#define HOROVOD_GLOO_JOB_PROOF_H

#include <cstdint>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace horovod {
namespace common {

#define HOROVOD_JOB_SECRET "HOROVOD_JOB_SECRET"

// FIPS 180-4.
inline std::string Sha256(const std::string& text) {
  static const uint32_t k[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
      0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
      0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
      0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                   0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const auto rotate = [](uint32_t x, int by) { return (x >> by) | (x << (32 - by)); };
  const uint64_t bits = static_cast<uint64_t>(text.size()) * 8;
  std::string padded = text + '\x80';
  padded.append((120 - padded.size() % 64) % 64, '\0');
  for (int shift = 56; shift >= 0; shift -= 8) {
    padded += static_cast<char>(bits >> shift);
  }
  for (size_t block = 0; block < padded.size(); block += 64) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
      const auto* at = reinterpret_cast<const unsigned char*>(padded.data() + block + 4 * i);
      w[i] = static_cast<uint32_t>(at[0]) << 24 | at[1] << 16 | at[2] << 8 | at[3];
    }
    for (int i = 16; i < 64; ++i) {
      const uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t v[8];
    for (int i = 0; i < 8; ++i) {
      v[i] = h[i];
    }
    for (int i = 0; i < 64; ++i) {
      const uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
      const uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
      const uint32_t t1 = v[7] + s1 + choice + k[i] + w[i];
      const uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
      const uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
      for (int j = 7; j > 0; --j) {
        v[j] = v[j - 1];
      }
      v[4] += t1;
      v[0] = t1 + s0 + majority;
    }
    for (int i = 0; i < 8; ++i) {
      h[i] += v[i];
    }
  }
  std::string digest;
  for (uint32_t word : h) {
    for (int shift = 24; shift >= 0; shift -= 8) {
      digest += static_cast<char>(word >> shift);
    }
  }
  return digest;
}

// RFC 2104.
inline std::string HmacSha256(const std::string& key, const std::string& message) {
  std::string inner = key.size() > 64 ? Sha256(key) : key;
  inner.resize(64, '\0');
  std::string outer = inner;
  for (size_t i = 0; i < 64; ++i) {
    inner[i] ^= 0x36;
    outer[i] ^= 0x5c;
  }
  return Sha256(outer + Sha256(inner + message));
}

inline std::string Hex(const std::string& bytes) {
  static const char digits[] = "0123456789abcdef";
  std::string text;
  for (unsigned char byte : bytes) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

inline std::string FromHex(const std::string& text) {
  std::string bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

// The proof of one request, and the check of its answer.
class JobProof {
public:
  JobProof(const std::string& method, const std::string& path, const std::string& body) {
    const char* secret = std::getenv(HOROVOD_JOB_SECRET);
    if (secret == nullptr) {
      throw std::runtime_error(HOROVOD_JOB_SECRET " is not set, and the launcher answers nobody who does not know it: "
                               "start this program with the horovodrun of the same Horovod.");
    }
    secret_ = FromHex(secret);
    std::random_device random;
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = random();
      nonce_ += Hex(std::string(reinterpret_cast<const char*>(&word), sizeof(word)));
    }
    const std::string digest = Hex(Sha256(body));
    headers_ = {"X-Horovod-Nonce: " + nonce_, "X-Horovod-Body: " + digest,
                "X-Horovod-Proof: " + Sign(method + "\n" + path + "\n" + nonce_ + "\n" + digest)};
  }

  const std::vector<std::string>& Headers() const { return headers_; }

  // Whether an answer is from one who knows the secret, and to this request.
  bool Proves(int status, const std::vector<std::string>& headers, const std::string& body) const {
    static const std::string name = "X-Horovod-Proof: ";
    const std::string expected =
        Sign(std::to_string(status) + "\n" + nonce_ + "\n" + Hex(Sha256(body)));
    for (const std::string& header : headers) {
      if (header.compare(0, name.size(), name) == 0) {
        return Equal(header.substr(name.size()), expected);
      }
    }
    return false;
  }

private:
  std::string Sign(const std::string& message) const { return Hex(HmacSha256(secret_, message)); }

  // In a time that does not tell where they differ.
  static bool Equal(const std::string& a, const std::string& b) {
    unsigned char differences = a.size() != b.size();
    for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
      differences |= static_cast<unsigned char>(a[i] ^ b[i]);
    }
    return differences == 0;
  }

  std::string secret_;
  std::string nonce_;
  std::vector<std::string> headers_;
};

} // namespace common
} // namespace horovod

#endif // HOROVOD_GLOO_JOB_PROOF_H
