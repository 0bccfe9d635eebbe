# The live studio in a container:
#   docker build -t causvid .
#   docker run --rm -p 7860:7860 causvid                       # prints an address with a token
#   docker run --rm -p 7860:7860 --gpus all causvid serve --host 0.0.0.0 --device cuda
# With what Wan's models need, and a folder of them:
#   docker build --build-arg EXTRAS=serve,wan -t causvid .
#   docker run --rm -p 7860:7860 --gpus all -v /models:/models causvid serve --host 0.0.0.0 --model /models/Wan2.1-T2V-1.3B --student /models/self_forcing_dmd.pt
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
ARG EXTRAS=serve
RUN useradd --create-home studio
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/causvid-*.whl)[$EXTRAS]" && rm -r /wheels
USER studio
WORKDIR /home/studio
# threads that spin while they wait starve each other on a shared machine
ENV OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
ENTRYPOINT ["causvid"]
CMD ["serve", "--host", "0.0.0.0"]
