# Sourced: lets the loader find cuBLAS of CUDA 13 where it is in none of the system's folders.
libraries=/usr/local/cuda/lib64
if command -v python3 >/dev/null; then
  for site in $(python3 -c 'import site, sys; print(*site.getsitepackages(), site.getusersitepackages(), *sys.path)' 2>/dev/null); do
    found=$(ls "$site"/nvidia/*/lib/libcublas.so.13 2>/dev/null | head -1)
    if [ -n "$found" ]; then
      libraries=$libraries:$(dirname "$found")
      break
    fi
  done
fi
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
