// nextflow run main.nf --scans '/data/scans/*.zarr' --model /data/net.onnx --out /data/labels
params.scans = 'scans/*.zarr'
params.model = 'net.onnx'
params.out = "$launchDir/labels"

process segment {
    tag "$name"
    cpus 8
    memory 32.GB
    // options, input, voxels, model, memory, an output of another run: no use in trying again
    errorStrategy { task.exitStatus in [2, 3, 4, 5, 7, 9] ? 'finish' : 'retry' }
    maxRetries 3
    publishDir params.out, mode: 'copy'

    input:
    tuple val(name), val(scan)

    output:
    path "${name}.html"

    // the output lies outside of the work folder, so that a second try goes on where the first one stopped
    script:
    """
    unet-engine run --in '$scan' --model '$params.model' --out '$params.out/${name}.zarr' --resume \
        --threads $task.cpus --memory ${task.memory.toBytes().intdiv(10) * 9} --report '${name}.html'
    """
}

workflow {
    segment(Channel.fromPath(params.scans, type: 'any').map { scan -> tuple(scan.baseName, scan.toString()) })
}
