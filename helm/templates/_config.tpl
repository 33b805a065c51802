{{/* Settings without secrets, per process: the data of the ConfigMaps. Strings, as the environment has them. */}}
{{- define "alignez.config.shared" -}}
ALIGNEZ_POOL_SIZE: {{ .Values.database.poolSize | quote }}
ALIGNEZ_POOL_OVERFLOW: {{ .Values.database.poolOverflow | quote }}
ALIGNEZ_PROMPT_FORMAT: {{ .Values.model.promptFormat | quote }}
{{- with .Values.model.name }}
ALIGNEZ_MODEL: {{ . | quote }}
{{- end }}
{{- with .Values.model.revision }}
ALIGNEZ_MODEL_REVISION: {{ . | quote }}
{{- end }}
{{- with .Values.model.servedName }}
ALIGNEZ_MODEL_NAME: {{ . | quote }}
{{- end }}
{{- with .Values.model.mlpPath }}
ALIGNEZ_MLP_PATH: {{ . | quote }}
{{- end }}
{{- with .Values.tracing.endpoint }}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ . | quote }}
OTEL_TRACES_SAMPLER: parentbased_traceidratio
OTEL_TRACES_SAMPLER_ARG: {{ $.Values.tracing.sampleRatio | quote }}
{{- end }}
{{- end }}

{{- define "alignez.config.api" -}}
ALIGNEZ_API_HOST: "0.0.0.0"
ALIGNEZ_API_PORT: "8000"
ALIGNEZ_API_METRICS_HOST: "0.0.0.0"
ALIGNEZ_API_METRICS_PORT: "9100"
ALIGNEZ_API_DRAIN_DELAY_S: {{ .drainDelaySeconds | quote }}
ALIGNEZ_API_DRAIN_S: {{ .drainSeconds | quote }}
ALIGNEZ_API_LOG_LEVEL: {{ .logLevel | quote }}
ALIGNEZ_API_LOG_FORMAT: json
{{- end }}

{{/* Judges beside those that need no settings. */}}
{{- define "alignez.config.judges" -}}
{{- with .Values.judge.url }}
ALIGNEZ_API_JUDGES: '["openai"]'
{{- end }}
{{- end }}

{{- define "alignez.config.control" -}}
ALIGNEZ_API_ROLE: control
{{ include "alignez.config.api" .Values.control }}
{{ include "alignez.config.judges" . }}
{{- end }}

{{- define "alignez.config.inference" -}}
{{- with .Values.inference -}}
ALIGNEZ_API_ROLE: {{ include "alignez.inferenceRole" $ }}
{{ include "alignez.config.api" . }}
{{ include "alignez.config.judges" $ }}
ALIGNEZ_API_ENGINE: {{ .engine }}
ALIGNEZ_API_DTYPE: {{ .dtype }}
ALIGNEZ_API_MAX_RUNNING: {{ .maxRunning | quote }}
ALIGNEZ_API_MAX_WAITING: {{ .maxWaiting | quote }}
{{- if eq .engine "vllm" }}
ALIGNEZ_API_VLLM_TENSOR_PARALLEL: {{ .tensorParallel | quote }}
ALIGNEZ_API_VLLM_RANK: {{ .vllmRank | quote }}
ALIGNEZ_API_VLLM_COMPILE: {{ .vllmCompile | quote }}
{{- else }}
ALIGNEZ_API_DEVICE: {{ .device }}
{{- end }}
{{- end }}
{{- end }}

{{/* The relay's too: worker and relay must agree on the time limit, which is an argument of the queue. */}}
{{- define "alignez.config.worker" -}}
{{- with .Values.worker -}}
ALIGNEZ_WORKER_ENGINE: {{ .engine }}
ALIGNEZ_WORKER_DTYPE: {{ .dtype }}
ALIGNEZ_WORKER_MAX_BATCH: {{ .maxBatch | quote }}
ALIGNEZ_WORKER_JOB_TIME_LIMIT_S: {{ .jobTimeLimitSeconds | quote }}
ALIGNEZ_WORKER_LEASE_S: {{ .leaseSeconds | quote }}
ALIGNEZ_WORKER_LOG_LEVEL: {{ .logLevel | quote }}
ALIGNEZ_WORKER_METRICS_HOST: "0.0.0.0"
ALIGNEZ_WORKER_METRICS_PORT: "9100"
{{- if eq .engine "vllm" }}
ALIGNEZ_WORKER_VLLM_TENSOR_PARALLEL: {{ .tensorParallel | quote }}
{{- else }}
ALIGNEZ_WORKER_DEVICE: {{ .device }}
{{- end }}
{{- with $.Values.judge }}
{{- if .url }}
ALIGNEZ_WORKER_JUDGE_URL: {{ .url | quote }}
ALIGNEZ_WORKER_JUDGE_MODEL: {{ .model | quote }}
ALIGNEZ_WORKER_JUDGE_TIMEOUT_S: {{ .timeoutSeconds | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* All of a component's settings, its `settings` value included. */}}
{{- define "alignez.config" -}}
{{- $own := include (printf "alignez.config.%s" .component) .root | fromYaml -}}
{{- $shared := include "alignez.config.shared" .root | fromYaml -}}
{{- range $name, $value := (index .root.Values .component).settings -}}
{{- if or (hasKey $own $name) (hasKey $shared $name) -}}
{{- fail (printf "%s.settings.%s: the chart sets it by a value of its own; change that one (see helm/README.md)" $.component $name) -}}
{{- end -}}
{{- end -}}
{{ merge (dict) (index .root.Values .component).settings $own $shared | toYaml }}
{{- end }}

{{/* Changes when the settings do, so that the pods are made anew. */}}
{{- define "alignez.checksum" -}}
checksum/config: {{ include "alignez.config" . | sha256sum }}
{{- end }}
