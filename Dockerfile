# One image for the API and the workers; the command decides which.
FROM python:3.12-slim AS build
WORKDIR /app
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir uv
COPY requirements.txt ./
RUN /venv/bin/uv pip install --no-cache --compile-bytecode --python /venv/bin/python --require-hashes -r requirements.txt

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 must && mkdir /data && chown must /data
COPY --from=build /venv /venv
WORKDIR /app
COPY alembic.ini ./
COPY app ./app
COPY worker ./worker
COPY must_core ./must_core
COPY migrations ./migrations
COPY examples/base_model/tiny-clip ./examples/base_model/tiny-clip
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 MUST_DATA_DIR=/data MUST_HOST=0.0.0.0
USER must
VOLUME /data
EXPOSE 8000
CMD ["python", "-m", "uvicorn", "app.main:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", "--timeout-keep-alive", "75"]
