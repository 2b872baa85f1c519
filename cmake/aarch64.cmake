# Debian's cross compiler and its arm64 libraries (dpkg --add-architecture arm64; libfmt-dev, libgomp1, libssl-dev :arm64);
# programs run under qemu-aarch64.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_LIBRARY_PATH /usr/lib/aarch64-linux-gnu)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64)
# xsimd is headers only, but its CMake files lie in the build machine's library folder.
set(xsimd_DIR /usr/lib/x86_64-linux-gnu/cmake/xsimd)
set(OPENSSL_CRYPTO_LIBRARY /usr/lib/aarch64-linux-gnu/libcrypto.so)
